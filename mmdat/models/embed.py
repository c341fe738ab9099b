# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From image to tokens, and from one stage to the next."""

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Conv2d


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Pads (B, H, W, C) with zeros at the bottom right."""
    height, width = x.shape[1:3]
    below, right = -height % divisor, -width % divisor
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


class PatchConv(Conv2d):
    """A convolution whose stride is its kernel, on maps of any size."""

    def __init__(
        self, in_dim: int, dim: int, size: int, bias: bool = True
    ) -> None:
        super().__init__(in_dim, dim, size, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, ceil(H / s), ceil(W / s), C')."""
        return super().forward(pad_to_multiple(x, self.stride[0]))


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
