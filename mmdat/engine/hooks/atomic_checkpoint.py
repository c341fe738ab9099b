# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checkpoints that are complete or absent, whenever a training dies."""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ...registry import HOOKS
from ...utils.errors import UserError, UserFileError
from ..work_dir import alive

# The name of the backend in mmengine's table.
_BACKEND = 'mmdat.whole_files'
_PART = '.part'


class WholeFilesBackend(LocalBackend):
    """Local files that get their final name when they are on the disk.

    Until then a file is called ``<name>.part``. If another process is writing
    that one, it is called ``<name>.<machine>.<process>.part``. It is removed
    if it cannot be finished. The next attempt overwrites a file that a killed
    process left, or the next training removes it.
    """

    def __init__(self) -> None:
        self._postponed: list[str] | None = None

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file.

        Args:
            obj: The content.
            filepath: Where to; missing folders are made.

        Raises:
            UserError: The disk is full, or cannot be written for another
                reason. An existing file of that name is unchanged.
        """
        path = Path(filepath)
        part = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part, opened = _open_part(path)
            with opened as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
                part.replace(path)  # while it is locked
        except BaseException as error:
            if part is not None:
                with suppress(OSError):
                    part.unlink()
            if isinstance(error, OSError):
                raise _not_written(path, error) from error
            raise

    def remove(self, filepath: str | Path) -> None:
        """Removes a file, now or as ``removing_last`` says."""
        if self._postponed is None:
            super().remove(filepath)
        else:
            self._postponed.append(str(filepath))

    @contextmanager
    def removing_last(self) -> Iterator[list[str]]:
        """Postpones removals to the end, and forgets them after an error.

        Yields:
            The files that will be removed.
        """
        self._postponed = postponed = []
        try:
            yield postponed
        finally:
            self._postponed = None
        for path in postponed:
            if self.isfile(path):
                self.remove(path)


def _machine() -> str:
    """The name of this machine, as part of the name of a file."""
    return re.sub(r'\W', '_', socket.gethostname())[:40]


def _open_part(path: Path) -> tuple[Path, BinaryIO]:
    """Opens a file to write, by a name that no other process writes to."""
    part = path.with_name(path.name + _PART)
    file = os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT, 0o666), 'wb')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its owner may have renamed it before it released the lock.
        if os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
            with suppress(OSError):  # of something that has no length
                file.truncate(0)
            return part, file
    except OSError:  # locked, or no locks here
        pass
    file.close()
    own = path.with_name(f'{path.name}.{_machine()}.{os.getpid()}{_PART}')
    return own, own.open('wb')


def _remove_parts(folder: Path) -> None:
    """Removes what killed processes of this machine have left."""
    for part in folder.glob(f'*.{_machine()}.*{_PART}'):
        process = part.name.split('.')[-2]
        if process.isdigit() and not alive(int(process)):
            with suppress(OSError):
                part.unlink()


def _not_written(path: Path, error: OSError) -> UserFileError:
    reason = error.strerror or type(error).__name__
    return UserFileError(
        f'{path} could not be written ({reason}) and training ended; earlier '
        f'checkpoints are unchanged, so free disk space or set another '
        f'--work-dir, and continue with --resume.'
    )


register_backend(_BACKEND, WholeFilesBackend)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Saves checkpoints so that a complete one exists at any moment.

    mmengine's hook removes the outdated checkpoint and then writes to the
    final name. A process killed meanwhile leaves an incomplete file, and with
    ``max_keep_ckpts=1`` no other. This hook writes complete files only, and
    removes an outdated checkpoint when its successor is on the disk. So the
    disk needs room for one more checkpoint.

    A training resumed from another work dir keeps the best checkpoint of that
    one, which mmengine's hook would remove.

    If an evaluation does not compute a metric that ``save_best`` names, this
    hook warns and continues; mmengine's hook would end the training after its
    first epoch.

    Remote folders use their own backend, as in mmengine.

    The arguments are those of ``mmengine.hooks.CheckpointHook``.
    """

    _told = False  # that a metric is missing

    def before_train(self, runner: Runner) -> None:
        """Chooses how files are written."""
        folder = str(self.out_dir or runner.work_dir)
        if (
            self.file_client_args is None
            and self.backend_args is None
            and type(get_file_backend(folder)) is LocalBackend
        ):
            self.backend_args = dict(backend=_BACKEND)
            if is_main_process():
                _remove_parts(Path(folder))
        super().before_train(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Saves by epochs."""
        with self._keeping_the_last():
            super().after_train_epoch(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kw: Any) -> None:
        """Saves by iterations."""
        with self._keeping_the_last():
            super().after_train_iter(runner, *args, **kw)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Saves the best so far."""
        missing = self._missing(metrics)
        if missing:
            if not self._told:
                runner.logger.warning(
                    f'save_best names {", ".join(missing)}, which the '
                    f'evaluation does not compute (it computes '
                    f'{", ".join(metrics)}), so no best checkpoint is kept '
                    f'for it; set default_hooks.checkpoint.save_best.'
                )
            self._told = True
            metrics = {**metrics, **dict.fromkeys(missing)}
        with self._keeping_the_last():
            super().after_val_epoch(runner, metrics)

    def _missing(self, metrics: dict) -> list[str]:
        """Metrics that `save_best` names and an evaluation lacks."""
        if not metrics or not self.save_best:
            return []
        return [
            name
            for name in self.key_indicators
            if name not in metrics and name != 'auto'
        ]

    @contextmanager
    def _keeping_the_last(self) -> Iterator[None]:
        """Removes outdated files after their successors are written."""
        backend = getattr(self, 'file_backend', None)  # none without training
        if not isinstance(backend, WholeFilesBackend):
            yield
            return
        try:
            with backend.removing_last() as outdated:
                yield
                current = {self.last_ckpt, getattr(self, 'best_ckpt_path', '')}
                current.update(
                    getattr(self, 'best_ckpt_path_dict', {}).values()
                )
                own = Path(self.out_dir).resolve()
                outdated[:] = [
                    path
                    for path in outdated
                    if path not in current
                    and Path(path).resolve().parent == own
                ]
        except UserError:
            raise
        except OSError as error:  # of the file `last_checkpoint`
            raise _not_written(Path(error.filename or ''), error) from error
