# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Random numbers that depend only on seed, iteration and rank."""

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...registry import HOOKS
from ..skipping import skip_trained


@HOOKS.register_module()
class IterSeedHook(Hook):
    """Seeds every iteration from the run's seed, the iteration and the rank.

    Checkpoints of mmengine contain no state of random number generators. With
    this hook they need none: a resumed training draws the same numbers
    (stochastic depth, sampled proposals, augmentation) as without the
    interruption.

    Each process draws different numbers, whatever
    ``randomness.diff_rank_seed`` says. Otherwise mixup, cutmix and stochastic
    depth would be the same in all processes.

    The hook cannot reach worker processes of a data loader. mmengine seeds
    them when they start. So with ``persistent_workers`` their augmentations
    start from the beginning in a resumed training; without it they start in
    every epoch and repeat exactly.
    """

    priority = 'LOWEST'  # after the other hooks have drawn theirs

    def before_train_epoch(self, runner: Runner) -> None:
        """Seeds the loading of the first batch."""
        start = partial(_seed, runner.seed, get_rank(), runner.iter, 0)
        skip_trained(runner.train_loop, start)
        start()

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Seeds the model."""
        _seed(runner.seed, get_rank(), runner.iter, 1)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Seeds the loading of the next batch."""
        _seed(runner.seed, get_rank(), runner.iter + 1, 0)


def _seed(*numbers: int) -> None:
    """Seeds all generators; similar numbers give unrelated streams."""
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))
