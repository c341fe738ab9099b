# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The schedule of learning rates that the classifiers were trained with."""

import math
from typing import Any

from mmengine.optim import _ParamScheduler

from ..registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """A cosine over the whole training, with a warm-up in place of its start.

    This is ``CosineLRScheduler`` of timm 0.5 with ``warmup_prefix=False`` and
    ``t_in_epochs=False``, by which the authors trained. At update t of T, with
    W updates of warm-up, peak rate p, floor m and start s, the rate is

    - ``s + (p - s) t / W`` for t < W,
    - ``m + (p - m) (1 + cos(pi t / T)) / 2`` from t = W on.

    The cosine starts with the training, not after the warm-up, so the rate
    drops from p to 0.989 p at the end of the warm-up (for 20 of 300 epochs).
    No chain of mmengine's schedulers gives this, because each starts its curve
    where the one before ends.

    The authors set the rate after an update from the number of that update, so
    their rate is one update late. Here t is the number of the update that uses
    the rate.

    Args:
        optimizer: The optimizer or its wrapper.
        warmup: Length of the warm-up, in epochs or updates as `by_epoch` says.
        start_factor: s over p.
        eta_min_ratio: m over p. Both are ratios, so that start and floor
            follow the rate when ``--auto-scale-lr`` scales it.
        begin: First epoch or update.
        end: T, end of the cosine.
        last_step: See ``mmengine.optim.CosineAnnealingLR``.
        by_epoch: Whether `warmup`, `begin` and `end` count epochs.
        verbose: Whether to print each rate.
    """

    def __init__(
        self,
        optimizer: Any,
        warmup: int = 0,
        start_factor: float = 1e-3,
        eta_min_ratio: float = 0.0,
        begin: int = 0,
        end: int = 10**9,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ) -> None:
        self.warmup = warmup
        self.start_factor = start_factor
        self.eta_min_ratio = eta_min_ratio
        super().__init__(
            optimizer, 'lr', begin, end, last_step, by_epoch, verbose
        )

    @classmethod
    def build_iter_from_epoch(
        cls,
        *args: Any,
        warmup: int = 0,
        begin: int = 0,
        end: int = 10**9,
        by_epoch: bool = True,
        epoch_length: int,
        **kwargs: Any,
    ) -> 'WarmupCosineLR':
        """The schedule by updates, for ``convert_to_iter_based=True``."""
        return cls(
            *args,
            warmup=warmup * epoch_length,
            begin=begin * epoch_length,
            end=end * epoch_length,
            by_epoch=False,
            **kwargs,
        )

    def _get_value(self) -> list[float]:
        """The rate of each parameter group."""
        if self.last_step < self.warmup:
            done = self.last_step / self.warmup
            factor = self.start_factor + (1 - self.start_factor) * done
        else:
            done = self.last_step / (self.end - self.begin)
            height = (1 + math.cos(math.pi * done)) / 2
            factor = self.eta_min_ratio + (1 - self.eta_min_ratio) * height
        return [factor * base for base in self.base_values]
