# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Random numbers that depend on the iteration and not on what ran before."""

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
    """Seeds every iteration anew, from the run's seed, its number and rank.

    A checkpoint of mmengine holds no state of random number generators. With
    this hook it needs none: a resumed training draws the numbers (stochastic
    depth, sampled proposals, augmentation) that it would have drawn without
    the interruption.

    Each process of a training draws numbers of its own, whatever
    ``randomness.diff_rank_seed`` says: mixup, cutmix and stochastic depth
    would otherwise be the same in all of them, and pictures that are mixed or
    blocks that are left out the same N times over.

    Worker processes of a data loader are out of reach. mmengine seeds them
    when they start, so with ``persistent_workers`` their augmentations begin
    from the start again in a resumed training; without it they are started in
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
    """Seeds all generators; near numbers give unrelated streams."""
    seeds = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))
