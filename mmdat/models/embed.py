# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From image to tokens, and from one stage to the next."""

from torch import nn

from .layers import Conv2d, PatchConv


def patch_embedding(in_channels: int, dim: int, conv: bool) -> nn.Sequential:
    """Stride 4: one 4x4 patch (DAT) or two 3x3 convolutions (DAT++)."""
    if not conv:
        return nn.Sequential(
            PatchConv(in_channels, dim, 4), nn.LayerNorm(dim)
        )
    return nn.Sequential(
        Conv2d(in_channels, dim // 2, 3, 2, 1),
        nn.LayerNorm(dim // 2),
        nn.GELU(),
        Conv2d(dim // 2, dim, 3, 2, 1),
        nn.LayerNorm(dim),
    )


def down_projection(in_dim: int, dim: int, conv: bool) -> nn.Sequential:
    """Stride 2: a 2x2 patch (DAT) or a 3x3 convolution (DAT++)."""
    return nn.Sequential(
        Conv2d(in_dim, dim, 3, 2, 1, bias=False)
        if conv
        else PatchConv(in_dim, dim, 2, bias=False),
        nn.LayerNorm(dim),
    )
