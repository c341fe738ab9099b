# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reading a feature map at continuous positions."""

import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32, autocast_off


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
    with autocast_off(x):
        samples = F.grid_sample(
            at_least_float32(maps).to(grid_xy.dtype),
            grid_xy,
            mode='bilinear',
            padding_mode='zeros',
            align_corners=True,
        )
    samples = samples.reshape(batch, channels, hk, wk)
    return samples.permute(0, 2, 3, 1).to(x.dtype)
