# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reading a feature map at continuous positions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import whole_grid_sample
from .backends.operators import HAS_OPERATORS, is_recorded, leaves_the_house
from .precision import (
    at_least_float32,
    autocast_off,
    must_repeat_exactly,
)


def sample_at_points(x: Tensor, points_yx: Tensor) -> Tensor:
    """Reads each channel group of a map at the points of that group.

    Bilinear, zeros outside the map, ``align_corners=True`` (DAT, eq. 4).

    Args:
        x: Map (B, H, W, C), of any floating type.
        points_yx: Positions (B, groups, Hk, Wk, 2) in [-1, 1], float32 or
            wider.

    Returns:
        Samples (B, Hk, Wk, C) in the type of `x`.
    """
    batch, groups, hk, wk, _ = points_yx.shape
    height, width, channels = x.shape[1:]
    maps = x.permute(0, 3, 1, 2).reshape(
        batch * groups, channels // groups, height, width
    )
    grid_xy = points_yx.flip(-1).reshape(batch * groups, hk, wk, 2)
    sample = _by_index if must_repeat_exactly(x) else grid_sample
    with autocast_off(x):
        samples = sample(at_least_float32(maps).to(grid_xy.dtype), grid_xy)
    samples = samples.reshape(batch, channels, hk, wk)
    return samples.permute(0, 2, 3, 1).to(x.dtype)


def grid_sample(maps: Tensor, grid_xy: Tensor) -> Tensor:
    """Reads maps (n, C, H, W) at positions (n, h, w, 2), bilinearly.

    Zeros outside the map; -1 and 1 are the centres of its outer pixels.
    """
    if _whole(maps) and torch.compiler.is_compiling():
        return whole_grid_sample.grid_sample(maps, grid_xy)
    return F.grid_sample(
        maps,
        grid_xy,
        mode='bilinear',
        padding_mode='zeros',
        align_corners=True,
    )


def grid_sample_between(
    maps: Tensor, to_xy: Tensor, from_xy: Tensor
) -> Tensor:
    """As :func:`grid_sample`, at the differences of all pairs of two places.

    Args:
        maps: (n, C, H, W).
        to_xy: (Q, 2).
        from_xy: (n, K, 2).

    Returns:
        Tensor (n, C, Q, K).
    """
    if _whole(maps):
        return whole_grid_sample.grid_sample_between(maps, to_xy, from_xy)
    return grid_sample(maps, to_xy[:, None] - from_xy[:, None])


def _whole(maps: Tensor) -> bool:
    return (
        HAS_OPERATORS
        and maps.device.type == 'cpu'
        and not leaves_the_house()
        and not is_recorded()
    )


def _by_index(maps: Tensor, grid_xy: Tensor) -> Tensor:
    """As :func:`grid_sample`, by plain indexing.

    Slower, but its backward pass can be deterministic on a GPU.
    """
    n, _, height, width = maps.shape
    size = maps.new_tensor([width - 1, height - 1])
    place_xy = (grid_xy + 1) / 2 * size
    corner_xy = place_xy.floor()
    image = torch.arange(n, device=maps.device)[:, None, None]
    samples = 0
    for step_x in (0, 1):
        for step_y in (0, 1):
            at_xy = corner_xy + corner_xy.new_tensor([step_x, step_y])
            weight = (1 - (place_xy - at_xy).abs()).prod(-1)
            inside = ((at_xy >= 0) & (at_xy <= size)).all(-1)
            x, y = (
                at_xy[..., axis].long().clamp(0, side - 1)
                for axis, side in ((0, width), (1, height))
            )
            values = maps.permute(0, 2, 3, 1)[image, y, x]
            samples = samples + values * (weight * inside)[..., None]
    return samples.permute(0, 3, 1, 2)
