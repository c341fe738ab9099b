# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Fitting the tensors of a state dict to a model of another resolution."""

from collections.abc import Sequence
from math import isqrt

import torch.nn.functional as F
from torch import Tensor


def _resize(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic, (heads, H, W) to (heads, *size)."""
    resized = F.interpolate(table[None].float(), size, mode='bicubic')
    return resized[0].to(table.dtype)


def fit(name: str, value: Tensor, wanted: Tensor) -> Tensor:
    """Returns `value` in the shape of the model's own entry, if it can be.

    Position-bias tables are resized bicubically, as the authors do when they
    start from another resolution: ``rpe_table`` (heads, H, W) as a map, unless
    it is one of another kind of bias, and
    ``relative_position_bias_table`` (n, heads) as a square of side sqrt(n).
    Weights of 1x1 convolutions become those of linear layers. Anything else
    is returned as it is, for the loading code to complain of.
    """
    if value.shape == wanted.shape or value.layout != wanted.layout:
        return value
    if value.ndim == 4 and value.shape[2:] == (1, 1) and wanted.ndim == 2:
        return value.flatten(1)
    if value.ndim != wanted.ndim or not value.numel():
        return value
    if name.endswith('.rpe_table') and len(value) == len(wanted):
        if {_is_dense(value), _is_dense(wanted)} == {True, False}:
            return value
        return _resize(value, wanted.shape[1:])
    if name.endswith('.relative_position_bias_table'):
        old, new = (round(len(table) ** 0.5) for table in (value, wanted))
        if old**2 == len(value) and value.shape[1] == wanted.shape[1]:
            table = value.T.unflatten(1, (old, old))
            return _resize(table, (new, new)).flatten(1).T
    return value


def _is_dense(table: Tensor) -> bool | None:
    """Whether an ``rpe_table`` has a number for each query and key.

    Its sides are numbers of positions, often squares. A table that is read at
    displacements has sides of 2 n - 1. None if the sides can be either.
    """
    sides = table.shape[1:]
    if any(side % 2 == 0 for side in sides):
        return True
    return None if all(isqrt(n) ** 2 == n for n in sides) else False


def pixels_of(shape: Sequence[int], stage: int) -> int:
    """The longer side of the images that a table was made for.

    Args:
        shape: (heads, 2H - 1, 2W - 1) for a map of H x W.
        stage: The stage of the map, 0 to 3.
    """
    return (max(shape[1:]) + 1) // 2 * 4 * 2**stage
