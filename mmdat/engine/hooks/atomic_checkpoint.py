# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checkpoints that are whole or not there, whenever a training dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ...registry import HOOKS
from ...utils.errors import UserError

# The name of the backend in mmengine's table.
_BACKEND = 'mmdat.whole_files'
_PART = '.part'


class WholeFilesBackend(LocalBackend):
    """Local files that get their name when all of them is on the disk.

    Until then a file is called ``<name>.part``. It is removed if it cannot be
    finished; one that a killed process left is overwritten by the next
    attempt.
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
                reason. A file that had the name before is as it was.
        """
        path = Path(filepath)
        part = path.with_name(path.name + _PART)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException as error:
            with suppress(OSError):
                part.unlink()
            if isinstance(error, OSError):
                raise _not_written(path, error) from error
            raise

    def remove(self, filepath: str | Path) -> None:
        """Removes a file, now or as :meth:`removing_last` says."""
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


def _not_written(path: Path, error: OSError) -> UserError:
    reason = error.strerror or type(error).__name__
    return UserError(
        f'{path} could not be written ({reason}) and training ended; earlier '
        f'checkpoints are as they were, so make room or set another '
        f'--work-dir, and go on with --resume.'
    )


register_backend(_BACKEND, WholeFilesBackend)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Saves checkpoints so that there is a whole one at any moment.

    mmengine's own hook writes to the final name and removes the outdated
    checkpoint before that. A process killed meanwhile leaves half a file, and
    with ``max_keep_ckpts=1`` nothing else. Here files are whole or not there,
    and what is outdated goes when its successor is on the disk, for which
    there must be room for one checkpoint more.

    Folders that are not local are left to their own backend.

    Args:
        **kwargs: As in :class:`mmengine.hooks.CheckpointHook`.
    """

    def before_train(self, runner: Runner) -> None:
        """Chooses how files are written."""
        folder = str(self.out_dir or runner.work_dir)
        if (
            self.file_client_args is None
            and self.backend_args is None
            and type(get_file_backend(folder)) is LocalBackend
        ):
            self.backend_args = dict(backend=_BACKEND)
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
        with self._keeping_the_last():
            super().after_val_epoch(runner, metrics)

    @contextmanager
    def _keeping_the_last(self) -> Iterator[None]:
        """Removes what is outdated after what takes its place is written."""
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
                outdated[:] = [p for p in outdated if p not in current]
        except OSError as error:  # of the file `last_checkpoint`
            raise _not_written(Path(error.filename or ''), error) from error
