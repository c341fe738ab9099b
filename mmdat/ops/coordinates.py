# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The two conventions of normalised coordinates, in float32 or wider.

A map of length n has its samples at -1 ... 1 (``align_corners=True``). The
reference points and the query positions are laid over it differently in the
two papers; the released weights were trained with exactly these rules:

=============  ==========================  ========================
convention     reference point i of n      query i of n
=============  ==========================  ========================
``dat``        2 (i + 0.5) / n - 1         2 (i + 0.5) / n - 1
``dat_pp``     2 (i + 0.5) / (n - 1) - 1   2 i / (n - 1) - 1
=============  ==========================  ========================

In ``dat_pp`` the last reference point thus lies a little outside [-1, 1],
and on an axis of length 1, where the rule divides by zero, points and queries
are at 0 and a ranged offset does not move them.
"""

import torch
from torch import Tensor

CONVENTIONS = ('dat', 'dat_pp')


def _axis(n: int, start: float, span: int, like: Tensor) -> Tensor:
    """``2 (start + i) / span - 1`` for i < n, or zeros where span is 0."""
    if span == 0:
        return torch.zeros(n, dtype=like.dtype, device=like.device)
    steps = torch.arange(n, dtype=like.dtype, device=like.device)
    return (steps + start) / span * 2 - 1


def reference_axis(n: int, convention: str, like: Tensor) -> Tensor:
    """Coordinates of the `n` reference points along one axis.

    Args:
        n: Number of reference points.
        convention: ``'dat'`` or ``'dat_pp'``.
        like: A tensor whose dtype and device are taken.

    Returns:
        Tensor of shape (n,).
    """
    return _axis(n, 0.5, n if convention == 'dat' else n - 1, like)


def query_axis(n: int, convention: str, like: Tensor) -> Tensor:
    """Coordinates of the `n` queries along one axis, shape (n,)."""
    if convention == 'dat':
        return _axis(n, 0.5, n, like)
    return _axis(n, 0.0, n - 1, like)


def reference_points_yx(
    hk: int, wk: int, convention: str, like: Tensor
) -> Tensor:
    """The regular grid the keys are moved from, shape (Hk, Wk, 2)."""
    y = reference_axis(hk, convention, like)
    x = reference_axis(wk, convention, like)
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1)


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
    reference_yx = reference_points_yx(hk, wk, convention, offset_yx)
    if offset_range < 0:
        return (reference_yx + offset_yx).clamp(-1, 1)
    cell_yx = offset_yx.new_tensor([_cell(n, convention) for n in (hk, wk)])
    return reference_yx + offset_range * cell_yx * offset_yx.tanh()


def _cell(n: int, convention: str) -> float:
    """What an offset range of 1 means on an axis of n keys."""
    if convention == 'dat':
        return 1 / n
    return 1 / (n - 1) if n > 1 else 0.0
