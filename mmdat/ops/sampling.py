# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reading maps at continuous positions, in PyTorch's own operations."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import grid_sample as whole
from .custom_op import (
    HAS_OPERATORS,
    is_compiling,
    is_exporting,
    is_recorded,
    is_transformed,
)
from .precision import (
    at_least_float32,
    autocast_off,
    must_repeat_exactly,
)
from .sizes import merge


def sample_plainly(x: Tensor, points_yx: Tensor) -> Tensor:
    """See ``mmdat.ops.sample_at_points``."""
    batch, groups, hk, wk, _ = points_yx.shape
    height, width, channels = x.shape[1:]
    maps = x.permute(0, 3, 1, 2).reshape(
        batch * groups, channels // groups, height, width
    )
    grid_xy = merge(points_yx).flip(-1)
    sample = _by_index if must_repeat_exactly(x) else grid_sample
    with autocast_off(x):
        samples = sample(at_least_float32(maps).to(grid_xy.dtype), grid_xy)
    samples = samples.reshape(batch, channels, hk, wk)
    return samples.permute(0, 2, 3, 1).to(x.dtype)


def grid_sample(maps: Tensor, grid_xy: Tensor) -> Tensor:
    """Reads maps (n, C, H, W) at positions (n, h, w, 2), bilinearly.

    Zeros outside the map; -1 and 1 are the centres of its outer pixels.
    """
    if is_transformed():  # with derivatives that grid_sample lacks
        return _by_index(maps, grid_xy)
    if _whole(maps) and is_compiling():
        return whole.grid_sample(maps, grid_xy)
    if maps.is_cuda and not torch.jit.is_tracing():
        # Otherwise cuDNN's operator, for which compilers infer no shapes.
        return torch.ops.aten.grid_sampler_2d(maps, grid_xy, 0, 0, True)
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
    """As ``grid_sample``, at the differences of all pairs of two places.

    Args:
        maps: (n, C, H, W).
        to_xy: (Q, 2).
        from_xy: (n, K, 2).

    Returns:
        Tensor (n, C, Q, K).
    """
    if _whole(maps):
        return whole.grid_sample_between(maps, to_xy, from_xy)
    return grid_sample(maps, to_xy[:, None] - from_xy[:, None])


def _whole(maps: Tensor) -> bool:
    return (
        HAS_OPERATORS
        and maps.device.type == 'cpu'
        and not is_exporting()
        and not is_recorded()
        and not is_transformed()
    )


def _by_index(maps: Tensor, grid_xy: Tensor) -> Tensor:
    """As ``grid_sample``, by plain indexing.

    Slower, but its backward pass can be deterministic on a GPU.
    """
    n, _, height, width = maps.shape
    maps = maps.permute(0, 2, 3, 1)
    image = torch.arange(n, device=maps.device)[:, None, None]
    place_x, place_y = (
        (place + 1) / 2 * (side - 1)
        for place, side in zip(grid_xy.unbind(-1), (width, height))
    )
    samples = 0
    for x, weight_x in _corners(place_x, width):
        for y, weight_y in _corners(place_y, height):
            weight = (weight_x * weight_y)[..., None]
            samples = samples + maps[image, y, x] * weight
    return samples.permute(0, 3, 1, 2)


def _corners(place: Tensor, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The two pixels around each place on an axis, and their weights."""
    first = place.floor()
    for step in (0, 1):
        at = first + step
        inside = (at >= 0) & (at <= side - 1)
        yield (
            at.long().clamp(0, side - 1),
            (1 - (place - at).abs()) * inside,
        )
