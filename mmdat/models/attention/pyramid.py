# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""P: attention to keys reduced by a strided convolution."""

from torch import Tensor, nn

from ...ops.full_attention import full_attention
from ...ops.sizes import unflatten
from ..layers import PatchConv, named


class PyramidAttention(nn.Module):
    """Spatial-reduction attention (PVT, ICCV 2021), as in DAT's ablations.

    Args:
        dim: Channels.
        num_heads: Heads.
        reduction: Side of the patch of one key; maps are padded with zeros to
            a multiple of it.
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        reduction: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)
        self.proj_ds = (
            named(conv=PatchConv(dim, dim, reduction), norm=nn.LayerNorm(dim))
            if reduction > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        height, width = x.shape[1:3]
        heads = (self.num_heads, -1)
        q = unflatten(self.q(x).flatten(1, 2), -1, heads).transpose(1, 2)
        kv = self.kv(self.proj_ds(x)).flatten(1, 2)
        k, v = (
            unflatten(half, -1, heads).transpose(1, 2)
            for half in kv.chunk(2, -1)
        )
        dropout = self.attn_drop_rate if self.training else 0.0
        out = full_attention(q, k, v, dropout=dropout)
        out = unflatten(out.transpose(1, 2).flatten(-2), 1, (height, width))
        return self.proj_drop(self.proj(out))
