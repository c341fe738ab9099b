# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""E: slide attention to a 3x3 patch."""

import torch
from torch import Tensor, nn

from ...ops.patch_attention import patches, slide_attention
from ...ops.sizes import unflatten


class SlideAttention(nn.Module):
    """Slide attention (Pan et al., CVPR 2023), as in DAT++'s ablations.

    Args:
        dim: Channels.
        num_heads: Heads.
        kernel_size: Side of the patch.
        reduction: Attention uses ``dim / reduction`` channels.
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 3,
        reduction: int = 4,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.attn_drop_rate = attn_drop_rate
        # The authors scale by the width of a head before the reduction.
        self.scale = (dim // num_heads) ** -0.5
        inner, patch = dim // reduction, kernel_size**2
        head_dim = inner // num_heads
        self.qkv = nn.Linear(dim, 3 * inner)
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(drop_rate)
        self.dep_conv = nn.Conv2d(
            head_dim,
            head_dim * patch,
            kernel_size,
            padding=kernel_size // 2,
            groups=head_dim,
        )
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(num_heads, patch)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        qkv = unflatten(self.qkv(x), -1, (self.num_heads, 3, -1))
        q, k, v = qkv.unbind(-2)
        out = slide_attention(
            q,
            self._neighbours(k),
            self._neighbours(v),
            self.relative_position_bias_table,
            scale=self.scale,
            dropout=self.attn_drop_rate if self.training else 0.0,
        )
        return self.proj_drop(self.proj(out.flatten(-2)))

    def _neighbours(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, heads, d) to the patches (B, H, W, heads, K K, d).

        The patches are the sum of shifted maps (a fixed convolution) and of a
        learnt convolution, which deforms the shift.
        """
        batch, height, width, heads, dim = x.shape
        x = x.permute(0, 3, 1, 2, 4).flatten(0, 1)  # B heads, H, W, d
        deformed = self.dep_conv(x.permute(0, 3, 1, 2))
        deformed = deformed.view(batch, heads, dim, -1, height, width)
        shifted = patches(x, self.kernel_size)  # B heads, H, W, K K, d
        shifted = unflatten(shifted, 0, (batch, heads))
        return (shifted + deformed.permute(0, 1, 4, 5, 3, 2)).permute(
            0, 2, 3, 1, 4, 5
        )
