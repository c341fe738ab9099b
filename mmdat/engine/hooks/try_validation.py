# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A validation of one picture before a training."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from traceback import extract_tb
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner, ValLoop
from mmengine.structures import BaseDataElement

from ...utils.errors import UserError
from ..distributed import check_in_one

# Metrics whose only state are their results.
_PROCESSED = (
    'CocoMetric',
    'LVISMetric',
    'VOCMetric',
    'IoUMetric',
    'Accuracy',
    'SingleLabelMetric',
    'MultiLabelMetric',
    'AveragePrecision',
)
# Those that also compute from one picture.
_COMPUTED = ('CocoMetric', 'IoUMetric', 'Accuracy', 'SingleLabelMetric')


class TryValidationHook(Hook):
    """Validates on the first picture before the first iteration.

    A pipeline, a model or a metric that cannot validate would otherwise end
    the run after its first epoch. The states of all random number generators
    are kept, so that the training is the same with and without this hook.
    Loops and metrics of other projects, which may have states of their own,
    are left alone.
    """

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        """Validates on one picture, in one process.

        Raises:
            UserError: The validation failed, with the reason.
        """
        loop = runner.val_loop
        if type(loop) is not ValLoop:
            return
        if hasattr(loop.dataloader.dataset, '__getitem__'):
            check_in_one(lambda: _try(runner, loop))


def _try(runner: Runner, loop: ValLoop) -> None:
    model, training = runner.model, runner.model.training
    metrics = [
        metric
        for metric in loop.evaluator.metrics
        if type(metric).__name__ in _PROCESSED and not metric.results
    ]
    try:
        with _same_chance(), _quiet(), torch.no_grad():
            sample = loop.dataloader.dataset[0]
            batch = loop.dataloader.collate_fn([sample])
            model.eval()
            outputs = [
                one.to_dict() if isinstance(one, BaseDataElement) else one
                for one in model.val_step(batch)
            ]
            for metric in metrics:
                metric.process(batch, outputs)
                _compute(metric)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        return  # the validation itself has more or less room
    except Exception as error:
        place = extract_tb(error.__traceback__)[-1]
        text = f'{type(error).__name__}: {error}'.rstrip('.')
        raise UserError(
            f'The model must be able to validate, and the first picture of '
            f'val_dataloader fails ({text:.500}, in {place.filename}, line '
            f'{place.lineno}); correct the pipeline of val_dataloader, '
            f'val_evaluator or the model, or set val_dataloader, val_cfg and '
            f'val_evaluator to None.'
        ) from error
    finally:
        model.train(training)
        for metric in metrics:
            metric.results.clear()


def _compute(metric: Any) -> None:
    """Computes a metric of one picture, if that writes no file."""
    name = type(metric).__name__
    if name not in _COMPUTED or getattr(metric, 'format_only', False):
        return
    if name != 'CocoMetric':
        metric.compute_metrics(list(metric.results))
        return
    if metric.outfile_prefix is not None or metric.img_ids is not None:
        return
    api, ids = getattr(metric, '_coco_api', None), metric.cat_ids
    try:
        # The other images would take minutes, and have no results.
        metric.img_ids = [result[1]['img_id'] for result in metric.results]
        metric.compute_metrics(list(metric.results))
    finally:
        metric._coco_api, metric.cat_ids, metric.img_ids = api, ids, None


@contextmanager
def _same_chance() -> Iterator[None]:
    """Restores the states of random number generators."""
    states = random.getstate(), np.random.get_state()
    # Other devices of this machine are for other processes.
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = [torch.cuda.current_device()] if used else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops what metrics print and log."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
