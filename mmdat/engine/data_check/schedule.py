# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares schedules of the learning rate with the training."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from mmengine.config import Config

from .loaders import by_iterations
from .parts import name_of
from .report import Report, listed

# Default end of mmengine's schedules.
_FOREVER = 1000000000

_WARM_UPS = (
    'LinearLR',
    'ConstantLR',
    'LinearParamScheduler',
    'ConstantParamScheduler',
)


def check_warm_up(
    cfg: Config, pictures: int | None, processes: int, report: Report
) -> None:
    """Reports a learning rate that never reaches its full value.

    Args:
        cfg: The config.
        pictures: Samples of an epoch, None if unknown.
        processes: Number of processes of the run.
        report: Receives the problems.
    """
    loop = cfg.get('train_cfg') or {}
    epochs = loop.get('max_epochs')
    per_epoch, total, batch = _lengths(cfg, pictures, processes)
    if total is None:
        return
    schedulers = _schedulers(cfg)
    for i, one in enumerate(schedulers):
        if by_iterations(cfg) and _by_epoch(one):
            continue  # check_schedule says more
        end = _end(one, per_epoch)
        if end is not None and end > total:
            where = f'param_scheduler{f".{i}" * (len(schedulers) > 1)}.end'
            length = f'{total} iterations'
            if 'max_iters' not in loop:
                length += (
                    f' ({epochs} epochs of {per_epoch}, {pictures} pictures '
                    f'in batches of {batch}'
                    f'{f" in {processes} processes" * (processes > 1)})'
                )
            report.warn(
                f'The warm-up takes {end} iterations and the training has '
                f'{length}, so the learning rate never reaches its full '
                f'value; lower {where} or train longer.'
            )


def _lengths(
    cfg: Config, pictures: int | None, processes: int
) -> tuple[int | None, int | None, Any]:
    """Returns iterations of an epoch and of the training, and the batch."""
    loop = cfg.get('train_cfg') or {}
    loader = cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size')
    if not batch and isinstance(loader.get('batch_sampler'), Mapping):
        batch = loader['batch_sampler'].get('batch_size')
    per_epoch = None
    if pictures and type(batch) is int and batch > 0:
        per_epoch = ceil(ceil(pictures / processes) / batch)
    total, epochs = loop.get('max_iters'), loop.get('max_epochs')
    if type(total) is not int:
        total = None
        if per_epoch is not None and type(epochs) is int:
            total = per_epoch * epochs
    return per_epoch, total, batch


def _schedulers(cfg: Config) -> list[Any]:
    found = cfg.get('param_scheduler') or []
    return [found] if isinstance(found, Mapping) else list(found)


def _by_epoch(scheduler: Any) -> bool:
    """Returns whether a schedule is stepped at the end of epochs."""
    return (
        isinstance(scheduler, Mapping)
        and bool(scheduler.get('by_epoch', True))
        and not scheduler.get('convert_to_iter_based')
    )


def check_schedule(
    cfg: Config, pictures: int | None, processes: int, report: Report
) -> None:
    """Reports schedules that never step, or end after the training.

    Args:
        cfg: The config.
        pictures: Samples of an epoch, None if unknown.
        processes: Number of processes of the run.
        report: Receives the problems.
    """
    iterations = by_iterations(cfg)
    if iterations is None:
        return
    loop = cfg.get('train_cfg') or {}
    epochs = loop.get('max_epochs')
    total = _lengths(cfg, pictures, processes)[1]
    schedulers = _schedulers(cfg)
    for i, one in enumerate(schedulers):
        if not isinstance(one, Mapping):
            continue
        place = 'param_scheduler' + f'.{i}' * (len(schedulers) > 1)
        if iterations and _by_epoch(one):
            report.warn(
                f'{place} ({name_of(one.get("type"))}) steps after epochs, '
                f'and IterBasedTrainLoop has only one, so the learning rate '
                f'keeps its first value; set {place}.by_epoch=False and '
                f'count iterations.'
            )
            continue
        per_epoch = bool(one.get('by_epoch', True))
        length = epochs if per_epoch and not iterations else total
        if type(length) is int and length > 0:
            unit = 'epochs' if per_epoch else 'iterations'
            _check_steps(one, place, length, unit, report)


def _check_steps(
    scheduler: Mapping[str, Any],
    place: str,
    length: int,
    unit: str,
    report: Report,
) -> None:
    """Compares milestones and periods with the length of a training."""
    milestones = scheduler.get('milestones')
    if not isinstance(milestones, list | tuple):
        milestones = []
    late = [s for s in milestones if type(s) is int and s >= length]
    if late:
        report.warn(
            f'{place}.milestones={list(milestones)} are in {unit}, and the '
            f'training has {length}, so the learning rate never steps at '
            f'{listed(late)}; correct milestones or train longer.'
        )
    if 'Cosine' not in name_of(scheduler.get('type')):
        return
    begin, end = scheduler.get('begin', 0), scheduler.get('end', _FOREVER)
    if type(begin) is not int or type(end) is not int or begin >= length:
        return
    period = scheduler.get('T_max')
    if type(period) is not int:
        period = end - begin
        if end == _FOREVER:
            return
    last = min(end, length)
    if 0 < period < last - begin:
        report.warn(
            f'{place}.T_max={period} is shorter than its {last - begin} '
            f'{unit}, so the learning rate rises again after {period}; set '
            f'it to {last - begin}.'
        )
    elif begin + period > length:
        report.warn(
            f'{place} takes {period} {unit} from {begin} on, and the training '
            f'has {length}, so the learning rate does not reach its end; '
            f'shorten the schedule or train longer.'
        )


def _end(scheduler: Any, per_epoch: int | None) -> int | None:
    """Returns the iterations of a warm-up, None for other schedulers."""
    if not isinstance(scheduler, Mapping):
        return None
    if name_of(scheduler.get('type')) not in _WARM_UPS:
        return None
    factor = scheduler.get('start_factor', scheduler.get('factor', 1 / 3))
    if not isinstance(factor, int | float) or factor >= 1:
        return None
    end = scheduler.get('end')
    if scheduler.get('begin', 0) or type(end) is not int:
        return None
    if not scheduler.get('by_epoch', True):
        return end
    return end * per_epoch if per_epoch else None
