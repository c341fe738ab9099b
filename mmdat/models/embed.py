# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From image to tokens, and from one stage to the next."""

from torch import nn

from .layers import Conv2d, PatchConv, named


def patch_embedding(in_channels: int, dim: int, conv: bool) -> nn.Sequential:
    """Stride 4: one 4x4 patch (DAT) or two 3x3 convolutions (DAT++)."""
    if not conv:
        return named(
            conv1=PatchConv(in_channels, dim, 4), norm1=nn.LayerNorm(dim)
        )
    return named(
        conv1=Conv2d(in_channels, dim // 2, 3, 2, 1),
        norm1=nn.LayerNorm(dim // 2),
        act=nn.GELU(),
        conv2=Conv2d(dim // 2, dim, 3, 2, 1),
        norm2=nn.LayerNorm(dim),
    )


def down_projection(in_dim: int, dim: int, conv: bool) -> nn.Sequential:
    """Stride 2: a 2x2 patch (DAT) or a 3x3 convolution (DAT++)."""
    return named(
        conv=Conv2d(in_dim, dim, 3, 2, 1, bias=False)
        if conv
        else PatchConv(in_dim, dim, 2, bias=False),
        norm=nn.LayerNorm(dim),
    )
