# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""``F.grid_sample`` as one operator for compilers.

Inductor decomposes it, and on a CPU the result is ten times slower than
PyTorch's kernel.
"""

import torch
from torch import Tensor

from ..custom_op import operator, recompute_in_backward

# Bilinear, zeros outside, align_corners=True.
_SETTINGS = 0, 0, True


@operator('grid_sample')
def grid_sample(maps: Tensor, grid_xy: Tensor) -> Tensor:
    """Reads maps (n, C, H, W) at positions (n, h, w, 2)."""
    return torch.grid_sampler(maps, grid_xy, *_SETTINGS)


@operator('grid_sample_backward')
def _grid_sample_backward(
    grad: Tensor, maps: Tensor, grid_xy: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.grid_sampler_2d_backward(
        grad, maps, grid_xy, *_SETTINGS, [True, True]
    )


@operator('grid_sample_between')
def grid_sample_between(
    maps: Tensor, to_xy: Tensor, from_xy: Tensor
) -> Tensor:
    """Reads maps (n, C, H, W) at all ``to_xy - from_xy``, (h, 2) by (n, w, 2).

    The differences are not stored for the backward pass.
    """
    return torch.grid_sampler(maps, _between(to_xy, from_xy), *_SETTINGS)


@operator('grid_sample_between_backward')
def _grid_sample_between_backward(
    grad: Tensor, maps: Tensor, to_xy: Tensor, from_xy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    maps_grad, moves_grad = _grid_sample_backward.function(
        grad, maps, _between(to_xy, from_xy)
    )
    return maps_grad, moves_grad.sum((0, 2)), -moves_grad.sum(1)


def _between(to_xy: Tensor, from_xy: Tensor) -> Tensor:
    return to_xy[:, None] - from_xy[:, None]


recompute_in_backward(
    grid_sample,
    _grid_sample_backward,
    fake=lambda maps, grid_xy: maps.new_empty(
        *maps.shape[:2], *grid_xy.shape[1:3]
    ),
)
recompute_in_backward(
    grid_sample_between,
    _grid_sample_between_backward,
    fake=lambda maps, to_xy, from_xy: maps.new_empty(
        *maps.shape[:2], to_xy.shape[0], from_xy.shape[1]
    ),
)
