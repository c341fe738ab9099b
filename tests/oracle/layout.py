# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Between batches (B, C, H, W) and the oracle's single maps (H, W, C)."""

from collections.abc import Callable

import numpy as np

Params = dict[str, np.ndarray]


def to_map(image: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H, W, C), float64."""
    return np.asarray(image, dtype=np.float64).transpose(1, 2, 0)


def from_map(feature: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (C, H, W)."""
    return feature.transpose(2, 0, 1)


def per_image(block: Callable, batch: np.ndarray, *args, **kwargs):
    """Runs a block of the oracle on every image of a batch.

    Args:
        block: Takes a map (H, W, C); returns a map, or a tuple whose first
            entry is a map and whose others are arrays of any shape.
        batch: (B, C, H, W).

    Returns:
        The maps as (B, C', H', W'); the other entries stacked, (B, ...).
    """
    results = [block(to_map(image), *args, **kwargs) for image in batch]
    if not isinstance(results[0], tuple):
        return np.stack([from_map(result) for result in results])
    first, *others = zip(*results, strict=True)
    return (
        np.stack([from_map(result) for result in first]),
        *(np.stack(other) for other in others),
    )


def subset(params: Params, prefix: str) -> Params:
    """The entries below `prefix` (with its dot), in float64, without it."""
    return {
        key[len(prefix) :]: np.asarray(value, dtype=np.float64)
        for key, value in params.items()
        if key.startswith(prefix)
    }
