# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks that a training is longer than its warm-up."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from mmengine.config import Config

from .parts import name_of
from .report import Report

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
    loader = cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size')
    if not batch and isinstance(loader.get('batch_sampler'), Mapping):
        batch = loader['batch_sampler'].get('batch_size')
    per_epoch = None
    if pictures and type(batch) is int and batch > 0:
        per_epoch = ceil(ceil(pictures / processes) / batch)
    total = loop.get('max_iters')
    epochs = loop.get('max_epochs')
    if type(total) is not int:
        if per_epoch is None or type(epochs) is not int:
            return
        total = per_epoch * epochs
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers]
    for i, one in enumerate(schedulers):
        end = _end(one, per_epoch)
        if end is not None and end > total:
            where = (
                f'param_scheduler.{i}.end'
                if len(schedulers) > 1
                else ('param_scheduler.end')
            )
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
