# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""E: slide attention on a 3x3 patch."""

import torch
from torch import Tensor, nn

from ...ops.slide_attention import slide_attention


class SlideAttention(nn.Module):
    """Slide attention (Pan et al., CVPR 2023), as in DAT++'s ablations.

    Args:
        dim: Channels.
        num_heads: Heads.
        kernel_size: Side of the patch.
        reduction: Attention works on ``dim / reduction`` channels.
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
        self.attn_drop_rate = attn_drop_rate
        # The authors scale by the width of a head before the reduction.
        self.scale = (dim // num_heads) ** -0.5
        inner, patch = dim // reduction, kernel_size**2
        head_dim = inner // num_heads
        self.qkv = nn.Linear(dim, 3 * inner)
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(drop_rate)
        self.dep_conv = nn.Conv2d(
            head_dim, head_dim * patch, kernel_size, groups=head_dim
        )
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(num_heads, patch)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        qkv = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1))
        out = slide_attention(
            *qkv.unbind(-2),
            self.dep_conv.weight,
            self.dep_conv.bias,
            self.relative_position_bias_table,
            scale=self.scale,
            dropout=self.attn_drop_rate if self.training else 0.0,
        )
        return self.proj_drop(self.proj(out.flatten(-2)))
