# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Skipping the data that a resumed training has already used."""

from collections.abc import Callable
from itertools import islice
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader


class SkippedBatches:
    """The batches of an iteration-based loop that continues a training.

    mmengine 0.10.7 reads every batch of the training before the interruption,
    which takes hours for 80,000 iterations of ADE20K and advances the random
    number generators. 0.10.12 only counts, but draws a number afterwards. Here
    the sampler counts, and `reseed` is called last.

    Args:
        batches: mmengine's endless iterator over the loader.
        passed: Number of batches to skip.
        reseed: Called before the first batch that counts is read.
    """

    def __init__(
        self, batches: Any, passed: int, reseed: Callable[[], None]
    ) -> None:
        self._batches = batches
        self._left = passed
        self._reseed = reseed
        self._loader = batches._dataloader
        self._counted = _count(self._loader, passed)
        if self._counted:
            batches._iterator = iter(self._loader)
        elif hasattr(batches, 'skip_iter'):
            batches.skip_iter(passed)
            self._counted = True

    def __iter__(self) -> 'SkippedBatches':
        return self

    def __next__(self) -> Any:
        if not self._left:
            return next(self._batches)
        self._left -= 1
        batch = None if self._counted else next(self._batches)
        if not self._left:
            self._reseed()
        return batch

    def skip_iter(self, num_iters: int) -> None:
        """Skips batches, as newer versions of mmengine request."""
        for _ in range(num_iters):
            next(self)


def skip_trained(loop: Any, reseed: Callable[[], None]) -> None:
    """Lets a loop continue after the data of its finished iterations.

    A loop by epochs, a loop at its start, and a config with
    ``fast_forward_on_resume`` are not changed.

    Args:
        loop: Of a training.
        reseed: Called before the first batch that counts is read.
    """
    if (
        isinstance(loop, IterBasedTrainLoop)
        and loop.iter > 0
        and not getattr(loop, 'fast_forward_on_resume', False)
    ):
        loop.dataloader_iterator = SkippedBatches(
            loop.dataloader_iterator, loop.iter, reseed
        )


def _count(loader: DataLoader, batches: int) -> bool:
    """Advances the sampler of a loader, if that is all there is to do."""
    sampler = loader.sampler
    if (
        type(sampler) is not InfiniteSampler
        or type(loader.batch_sampler) is not BatchSampler
    ):
        return False
    # From the start, as workers have been given the first ones already.
    sampler.indices = islice(
        sampler._indices_of_rank(), batches * loader.batch_size, None
    )
    if getattr(loader, 'persistent_workers', False):
        loader._iterator = None
    return True
