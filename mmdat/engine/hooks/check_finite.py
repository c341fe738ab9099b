# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Ending a training with NaN or infinite numbers."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from ...registry import HOOKS
from ...utils.errors import UserError


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Ends a training when its loss or its weights become infinite or NaN.

    The hook checks the loss in every iteration; mmengine reads it in each one
    anyway. Before a checkpoint is saved it checks the trained parameters, and
    buffers for NaN. Infinity in a buffer is allowed: attention masks and
    unused observers contain it. So a NaN gradient under a finite loss is
    noticed one iteration later, and no checkpoint contains such weights.

    Args:
        patience: With loss scaling, the number of consecutive losses that may
            be NaN or infinite: loss scaling skips the update of such an
            iteration and halves the scale. Without loss scaling the first such
            loss ends the training. Defaults to 20.
    """

    priority = 'LOW'  # before anything is saved

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._bad = 0
        self._nan_from_the_start: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Notes which buffers are NaN already."""
        self._nan_from_the_start = {
            name
            for name, buffer in _unwrapped(runner).named_buffers()
            if buffer.is_floating_point() and buffer.isnan().any()
        }

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Looks at the loss.

        Raises:
            UserError: It is not finite.
        """
        losses = {
            name: value.item() if hasattr(value, 'item') else float(value)
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        bad = {n: v for n, v in losses.items() if not isfinite(v)}
        if not bad:
            self._bad = 0
            return
        self._bad += 1
        which = ', '.join(f'{name}={value}' for name, value in bad.items())
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if scaler is not None and self._bad <= self.patience:
            runner.logger.warning(
                f'{which} in iteration {runner.iter + 1}; its update is '
                f'skipped.'
            )
            return
        self._stop(runner, f'{which} in iteration {runner.iter + 1}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Looks at the weights.

        Raises:
            UserError: One is not finite.
        """
        number = checkpoint['meta']['iter']
        model = _unwrapped(runner)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        buffers = {name for name, _ in model.named_buffers()}
        for name, value in checkpoint['state_dict'].items():
            if not isinstance(value, Tensor) or not (
                value.is_floating_point() or value.is_complex()
            ):
                continue
            if name in trained and not value.isfinite().all():
                what = 'infinite or NaN values'
            elif (
                name in buffers - self._nan_from_the_start
                and value.isnan().any()
            ):
                what = 'NaN values'
            else:
                continue
            self._stop(runner, f'{name} has {what} after iteration {number}')

    def _stop(self, runner: Runner, what: str) -> None:
        note = Path(runner.work_dir) / 'last_checkpoint'
        last = 'no checkpoint was saved before'
        if note.is_file():
            text = note.read_text(errors='replace').strip()
            last = f'the last checkpoint is {text:.200}'
        error = UserError(
            f'Training diverged: {what}. Lower the learning rate, warm up for '
            f'longer, or add optim_wrapper.clip_grad=dict(max_norm=1); {last}.'
        )
        if not is_main_process():  # only that one prints errors
            runner.logger.error(error)
        raise error


def _unwrapped(runner: Runner) -> Any:
    """The model, whose names are those of a checkpoint."""
    model = runner.model
    return model.module if is_model_wrapper(model) else model
