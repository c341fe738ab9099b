# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The checkpoint from which an interrupted training continues."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from ..checkpoints.loading import load_checkpoint_file
from ..utils.errors import UserError, warn_once

# Longer names of files are none, on Linux.
_LONGEST_NAME = 4096
# Settings of optimisers that say how, and not what, is computed; a file of
# another PyTorch may lack them.
_WITHOUT_MEANING = (
    'params',
    'foreach',
    'fused',
    'maximize',
    'capturable',
    'differentiable',
    'decoupled_weight_decay',
)


def set_resume(cfg: Config, resume: str | None) -> Mapping[str, Any]:
    """Continues from ``'auto'``, the latest in the work dir, or a file.

    Where the work dir has none yet, ``'auto'`` starts from the weights that
    the config names in ``load_from``, as a first run does. A file that cannot
    be read is skipped with a warning, and the one before it is used.

    If the config has no seed, the run continues with the seed that it chose
    before, so the order of the data is the same.

    Args:
        cfg: The config, whose work dir is set.
        resume: ``'auto'``, a file, or None for not at all.

    Returns:
        What the checkpoint holds, as far as it was read; tensors are on the
        ``meta`` device.

    Raises:
        UserError: There are checkpoints, but none can be read.
    """
    content: Mapping[str, Any] = {}
    if resume is None:
        return content
    if resume == 'auto':
        recorded = _recorded(Path(cfg.work_dir))
        if _is_remote(recorded):
            cfg.load_from = recorded
        else:
            found = _latest(Path(cfg.work_dir), recorded)
            if found is None:
                cfg.resume = False
                return content
            cfg.load_from, content = found
    else:
        cfg.load_from = resume
        if not _is_remote(resume):
            content = load_checkpoint_file(resume, 'meta')
    cfg.resume = True
    meta = content.get('meta')
    seed = meta.get('seed') if isinstance(meta, Mapping) else None
    if (
        isinstance(seed, int)
        and not isinstance(seed, bool)
        and (cfg.get('randomness') or {}).get('seed') is None
    ):
        cfg.merge_from_dict({'randomness': dict(seed=seed)})
    return content


def check_resumable(cfg: Config, content: Mapping[str, Any]) -> None:
    """Raises UserError unless a checkpoint is of such a training.

    Args:
        cfg: The config, with the checkpoint as ``load_from``.
        content: What it holds, from ``set_resume``; nothing of it is
            looked at if it is empty.
    """
    if not content:
        return
    filename = cfg.load_from
    instead = (
        f'leave out --resume and add --cfg-options load_from={filename} to '
        f'start a training from its weights'
    )
    meta, missing = content.get('meta'), 'meta'
    if isinstance(meta, Mapping):
        numbers = [key for key in ('epoch', 'iter') if key not in meta]
        odd = [k for k in ('epoch', 'iter') if not _is_count(meta.get(k))]
        missing = next((f'meta.{key}' for key in numbers), '')
        if not missing and odd:
            raise UserError(
                f'The state of a training has whole numbers of epochs and '
                f'iterations; {filename} has meta.{odd[0]}='
                f'{meta[odd[0]]!r:.40}, so {instead}.'
            )
        seed = meta.get('seed')
        if seed is not None and not _is_count(seed):
            raise UserError(
                f'The seed of a training is a whole number; {filename} has '
                f'meta.seed={seed!r:.40}, so {instead}.'
            )
        if not missing and not isinstance(meta.get('config', ''), str):
            missing = 'meta.config as text'
    elif meta is not None:
        missing = f'meta by name, but a {type(meta).__name__},'
    if not missing and not isinstance(content.get('message_hub'), Mapping):
        missing = 'message_hub'
    if missing:
        raise UserError(
            f'--resume continues from the state of a training; {filename} has '
            f'no {missing} and may contain weights only, so {instead}.'
        )
    _check_schedule(cfg, filename, content.get('param_schedulers'), instead)
    if 'optimizer' not in content:
        warn_once(f'{filename} has no optimizer state, so a new one is used.')
    elif isinstance(content['optimizer'], Mapping):
        _check_optimizer(cfg, filename, content['optimizer'], instead)
    else:
        raise UserError(
            f'The state of an optimiser is a dict; in {filename} it is a '
            f'{type(content["optimizer"]).__name__}, so {instead}.'
        )


def _check_schedule(
    cfg: Config, filename: str, states: Any, instead: str
) -> None:
    """Compares the numbers of schedulers, which mmengine pairs by place."""
    own = cfg.get('param_scheduler')
    if isinstance(own, Mapping) and 'type' in own:
        own = [own]
    if not isinstance(own, list | tuple) or not isinstance(states, list):
        return
    if len(own) != len(states):
        raise UserError(
            f'--resume continues the schedule of the file; {filename} has the '
            f'state of {len(states)} param_schedulers and the config has '
            f'{len(own)}, so set those that it had, or {instead}.'
        )


def check_groups(optimizer: Any, filename: str, state: Any) -> None:
    """Raises UserError if an optimiser has other groups than a checkpoint.

    Args:
        optimizer: Something with ``param_groups``.
        filename: The checkpoint.
        state: What it holds as ``optimizer``.
    """
    groups = state.get('param_groups') if isinstance(state, Mapping) else None
    own = getattr(optimizer, 'param_groups', None)
    if not isinstance(groups, list) or not isinstance(own, list):
        return
    there, here = (
        [len(group.get('params', ())) for group in some]
        for some in (groups, own)
    )
    if there != here:
        raise UserError(
            f'--resume needs the parameters in the groups of the file; '
            f'{filename} has {sum(there)} parameters in groups of '
            f'{_shown(there)} and the optimiser has {sum(here)} in groups of '
            f'{_shown(here)}, so set the '
            f'paramwise_cfg and frozen stages that it had, or leave out '
            f'--resume and add --cfg-options load_from={filename}.'
        )


def _shown(sizes: list[int]) -> str:
    """E.g. ``2, 1, 1 and 40 more``."""
    more = f' and {len(sizes) - 3} more' if len(sizes) > 3 else ''
    return ', '.join(map(str, sizes[:3])) + more


def _is_count(value: Any) -> bool:
    return (
        isinstance(value, int) and not isinstance(value, bool) and value >= 0
    )


def _check_optimizer(
    cfg: Config, filename: str, state: Mapping[str, Any], instead: str
) -> None:
    """Compares the settings of the optimiser with those in the file."""
    wrapper = cfg.get('optim_wrapper') or {}
    settings = wrapper.get('optimizer') if isinstance(wrapper, dict) else None
    if not isinstance(settings, dict) or 'constructor' in settings:
        return
    groups = state.get('param_groups')
    if not isinstance(groups, list) or not groups:
        return  # of several optimisers
    kind = settings.get('type')
    name = getattr(kind, '__name__', str(kind))
    try:
        found = kind if isinstance(kind, type) else OPTIMIZERS.get(kind)
        given = {k: v for k, v in settings.items() if k != 'type'}
        (own,) = found([torch.zeros(1)], **given).param_groups
    except Exception:  # one of the user's, or not to be built like this
        return
    lacking = [
        key
        for key in own
        if key not in groups[0] and key not in _WITHOUT_MEANING
    ]
    if lacking:
        raise UserError(
            f'--resume needs the optimiser that the file was made with; '
            f'{filename} lacks {", ".join(lacking)} of '
            f'optim_wrapper.optimizer.type={name!r}, so set the type that it '
            f'had, or {instead}.'
        )


def _recorded(work_dir: Path) -> str | None:
    """The checkpoint that mmengine noted as the last one."""
    note = work_dir / 'last_checkpoint'
    if not note.is_file():
        return None
    try:
        # A process that is killed while it writes the note leaves it empty.
        text = note.read_bytes()[:_LONGEST_NAME].decode().strip()
        if text.isprintable() and len(text) < _LONGEST_NAME - 1:
            os.stat(text or '.')
        else:
            raise ValueError
    except FileNotFoundError:
        return text
    except (OSError, ValueError):
        warn_once(f'{note} names no file and is skipped.')
        return None
    return text or None


def _is_remote(name: str | None) -> bool:
    """Whether mmengine reads it itself: by its address, or a folder."""
    if name is None:
        return False
    try:
        return '://' in name or Path(name).is_dir()
    except (OSError, ValueError):  # a name too long, or with a null
        return False


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
    last = _number(Path(recorded or ''))

    def order(path: Path) -> tuple[bool, int, int]:
        kind, number = _number(path)
        before = kind == last[0] and 0 <= number <= last[1]
        return before, number if before else 0, path.stat().st_mtime_ns

    yield from sorted(others.values(), key=order, reverse=True)


def _number(path: Path) -> tuple[str, int]:
    """Kind and number of ``epoch_3.pth``.

    The numbers up to the recorded one go on where it was; a copied folder has
    other times. Higher ones are of an earlier training.
    """
    kind, _, number = path.stem.rpartition('_')
    return (kind, int(number)) if number.isdecimal() else ('', -1)


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
            warn_once(f'{sentence} Continuing from {path} instead.')
        return str(path), content
    if trouble:
        raise UserError(
            f'{trouble[0]} {work_dir} has no other checkpoint to resume; '
            f'name one, --resume FILE, or leave out --resume to start again.'
        )
    return None
