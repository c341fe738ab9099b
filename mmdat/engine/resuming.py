# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Which checkpoint an interrupted training goes on from."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..checkpoints.loading import load_checkpoint_file
from ..utils.errors import UserError


def set_resume(cfg: Config, resume: str | None) -> None:
    """Continues from ``'auto'``, the latest in the work dir, or a file.

    Where the work dir has none yet, ``'auto'`` starts from the weights that
    the config names in ``load_from``, as a first run does. A file that cannot
    be read is passed over with a warning for the one before it.

    A run whose config has no seed goes on with the one it had chosen, so that
    the order of the data is the same.

    Args:
        cfg: The config, whose work dir is set.
        resume: ``'auto'``, a file, or None for not at all.

    Raises:
        UserError: There are checkpoints, but none can be read.
    """
    if resume is None:
        return
    content: Mapping[str, Any] = {}
    if resume == 'auto':
        recorded = _recorded(Path(cfg.work_dir))
        if _is_remote(recorded):
            cfg.load_from = recorded
        else:
            found = _latest(Path(cfg.work_dir), recorded)
            if found is None:
                cfg.resume = False
                return
            cfg.load_from, content = found
    else:
        cfg.load_from = resume
        if Path(resume).is_file():
            content = load_checkpoint_file(resume, 'meta')
    cfg.resume = True
    seed = (content.get('meta') or {}).get('seed')
    if seed is not None and cfg.get('randomness', {}).get('seed') is None:
        cfg.merge_from_dict({'randomness': dict(seed=int(seed))})


def _recorded(work_dir: Path) -> str | None:
    """The checkpoint that mmengine noted as the last one."""
    note = work_dir / 'last_checkpoint'
    # A process that is killed while it writes the note leaves it empty.
    return note.read_text().strip() or None if note.is_file() else None


def _is_remote(name: str | None) -> bool:
    """Whether mmengine reads it itself: by its address, or a folder."""
    return name is not None and ('://' in name or Path(name).is_dir())


def _candidates(work_dir: Path, recorded: str | None) -> Iterator[Path]:
    """The recorded checkpoint, then the others, newest first."""
    folders = [work_dir]
    if recorded is not None:
        yield Path(recorded)
        folders.insert(0, Path(recorded).parent)
    others = {
        path.resolve(): path
        for folder in folders
        for kind in ('epoch', 'iter')
        for path in folder.glob(f'{kind}_*.pth')
        if recorded is None or path.resolve() != Path(recorded).resolve()
    }
    yield from sorted(
        others.values(), key=lambda p: p.stat().st_mtime_ns, reverse=True
    )


def _latest(
    work_dir: Path, recorded: str | None
) -> tuple[str, Mapping[str, Any]] | None:
    """The last checkpoint that is whole, and what it holds."""
    trouble = []
    for path in _candidates(work_dir, recorded):
        try:
            content = load_checkpoint_file(path, 'meta')
        except UserError as error:
            trouble.append(str(error))
            continue
        for sentence in trouble:
            _warn(f'{sentence} Going on from {path} instead.')
        return str(path), content
    if trouble:
        raise UserError(
            f'{trouble[0]} {work_dir} has no other checkpoint to go on from; '
            f'name one, --resume FILE, or leave out --resume to start afresh.'
        )
    return None


def _warn(sentence: str) -> None:
    """Says it once, whatever the number of processes."""
    if os.environ.get('RANK', '0') == '0':
        print(f'warning: {sentence}', file=sys.stderr, flush=True)
