# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""F: attention between all positions."""

from torch import Tensor, nn

from ...ops.full_attention import full_attention
from ...ops.sizes import unflatten


class FullAttention(nn.Module):
    """Multi-head self-attention on the whole map, as in DAT++'s ablations.

    The same as in ViT (Dosovitskiy et al., ICLR 2021), without position bias
    and without bias on queries, keys and values. The cost grows with the
    square of the number of positions: stage 1 has 67,200 at 800 x 1344.

    Args:
        dim: Channels.
        num_heads: Heads.
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        height, width = x.shape[1:3]
        qkv = self.qkv(x).flatten(1, 2)  # B, H W, 3 C
        qkv = unflatten(qkv, -1, (3, self.num_heads, -1)).transpose(1, 3)
        dropout = self.attn_drop_rate if self.training else 0.0
        out = full_attention(*qkv.unbind(2), dropout=dropout)
        out = unflatten(out.transpose(1, 2).flatten(-2), 1, (height, width))
        return self.proj_drop(self.proj(out))
