# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""N: attention to the neighbourhood of each position."""

import torch
from torch import Tensor, nn

from ...ops import neighborhood_attention
from ...ops.sizes import at_least, crop, pad, unflatten
from ..fused import project
from ..stock import calls_by_the_seam


@calls_by_the_seam('qkv', 'proj')
class NeighborhoodAttention(nn.Module):
    """Multi-head neighbourhood attention (Hassani et al., CVPR 2023).

    A map smaller than the neighbourhood is padded to it with zeros at the
    bottom right.

    Args:
        dim: Channels.
        num_heads: Heads.
        kernel_size: Side of the neighbourhood, odd.
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout on the output.
        backend: See ``mmdat.ops.neighborhood_attention``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.attn_drop_rate = attn_drop_rate
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)
        self.rpb = nn.Parameter(
            torch.zeros(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
        )
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        height, width = x.shape[1:3]
        below = at_least(self.kernel_size - height, 0)
        right = at_least(self.kernel_size - width, 0)
        qkv = project(self.qkv, pad(x, below, right))
        qkv = unflatten(qkv, -1, (3, self.num_heads, -1))
        out = neighborhood_attention(
            *qkv.unbind(3),
            self.rpb,
            self.kernel_size,
            dropout=self.attn_drop_rate if self.training else 0.0,
            backend=self.backend,
        )
        out = crop(out, height, width).flatten(-2)
        return self.proj_drop(project(self.proj, out))
