# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The two conventions of normalised coordinates, in float32 or wider.

Coordinates -1 and 1 are the first and the last sample of an axis
(``align_corners=True``). The two papers lay reference points and queries over
an axis of length n differently, and the released weights need exactly these
rules:

| convention | reference point i | query i |
|---|---|---|
| ``dat`` | 2 (i + 0.5) / n - 1 | 2 (i + 0.5) / n - 1 |
| ``dat_pp`` | 2 (i + 0.5) / (n - 1) - 1 | 2 i / (n - 1) - 1 |

So the last reference point of ``dat_pp`` lies a little outside [-1, 1]. An
axis of length 1 would divide by zero in ``dat_pp``: there, points and queries
are at 0, and an offset with a range does not move a point.
"""

import torch
from torch import Tensor

from .constants import constant
from .sizes import at_least, at_most

CONVENTIONS = ('dat', 'dat_pp')


@constant
def _axis(
    n: int, first: int, span: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``(i + first / 2) / (span / 2)`` for i < n, or zeros where span is 0.

    The two conventions as fractions of halves, rounded once. A range of
    another step than 1 has a length that compilers cannot follow.
    """
    numbers = torch.arange(n, dtype=dtype, device=device)
    if type(span) is not int:  # traced: right at sizes with and without 0
        axis = (numbers + first / 2) / (at_least(span, 1) / 2)
        return axis * at_most(span, 1)
    if span == 0:
        return torch.zeros_like(numbers)
    return (numbers + first / 2) / (span / 2)


@constant
def _points_yx(
    hk: int,
    wk: int,
    convention: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """See [`reference_points_yx`][]."""
    like = torch.empty(0, dtype=dtype, device=device)
    y = reference_axis(hk, convention, like)
    x = reference_axis(wk, convention, like)
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1)


@constant
def _cell_yx(
    hk: int,
    wk: int,
    convention: str,
    factor: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The length of an offset of `factor` cells along y and x, shape (2,)."""
    cells = [factor * _cell(n, convention) for n in (hk, wk)]
    return torch.cat(
        [torch.full((1,), c, dtype=dtype, device=device) for c in cells]
    )


def reference_axis(n: int, convention: str, like: Tensor) -> Tensor:
    """Coordinates of the `n` reference points along one axis.

    Args:
        n: Number of reference points.
        convention: ``'dat'`` or ``'dat_pp'``.
        like: A tensor with the dtype and device of the result.

    Returns:
        Tensor of shape (n,).
    """
    if convention == 'dat':
        return _axis(n, 1 - n, n, like.dtype, like.device)
    return _axis(n, 2 - n, n - 1, like.dtype, like.device)


def query_axis(n: int, convention: str, like: Tensor) -> Tensor:
    """Coordinates of the `n` queries along one axis, shape (n,)."""
    if convention == 'dat':
        return _axis(n, 1 - n, n, like.dtype, like.device)
    return _axis(n, 1 - n, n - 1, like.dtype, like.device)


def reference_points_yx(
    hk: int, wk: int, convention: str, like: Tensor
) -> Tensor:
    """The regular grid of reference points, shape (Hk, Wk, 2)."""
    return _points_yx(hk, wk, convention, like.dtype, like.device)


def deformed_points_yx(
    offset_yx: Tensor, convention: str, offset_range: float
) -> Tensor:
    """Moves the reference points by the predicted offsets.

    DAT (CVPR 2022, sec. 3.2) bounds an offset to ``offset_range`` cells of the
    key grid by tanh and lets points leave the map, where they read zeros.
    DAT++ drops the range (-1) and clamps the moved point to the map instead.

    Args:
        offset_yx: Raw offsets (..., Hk, Wk, 2).
        convention: ``'dat'`` or ``'dat_pp'``.
        offset_range: Largest move in cells of the key grid; negative for
            none, in which case the moved points are clamped to [-1, 1].

    Returns:
        Positions (..., Hk, Wk, 2) in normalised coordinates.
    """
    hk, wk = offset_yx.shape[-3:-1]
    like = offset_yx.dtype, offset_yx.device
    reference_yx = _points_yx(hk, wk, convention, *like)
    if offset_range < 0:
        return (reference_yx + offset_yx).clamp(-1, 1)
    cell_yx = _cell_yx(hk, wk, convention, offset_range, *like)
    return torch.addcmul(reference_yx, offset_yx.tanh(), cell_yx)


def _cell(n: int, convention: str) -> float:
    """The length of an offset range of 1 on an axis of n keys."""
    if convention == 'dat':
        return 1 / n
    if type(n) is not int:  # traced, as in `_axis`
        return at_most(n - 1, 1) / at_least(n - 1, 1)
    return 1 / (n - 1) if n > 1 else 0.0
