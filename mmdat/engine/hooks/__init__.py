# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the runtimes of our configs add to a training, for every task."""

from .atomic_checkpoint import AtomicCheckpointHook
from .check_finite import CheckFiniteHook
from .iter_seed import IterSeedHook
from .name_data import NameDataHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckFiniteHook',
    'IterSeedHook',
    'NameDataHook',
]
