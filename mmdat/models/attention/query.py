# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Q: attention of learnt queries to a 3x3 patch."""

import torch
from torch import Tensor, nn

from ...ops.patch_attention import learned_query_attention
from ...ops.sizes import unflatten


class QueryAttention(nn.Module):
    """Query and attend (QnA, Arar et al., CVPR 2022), as in DAT's ablations.

    Args:
        dim: Channels.
        num_heads: Heads.
        num_queries: Number of learnt queries.
        kernel_size: Side of the patch.
        drop_rate: Dropout on the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_queries: int = 2,
        kernel_size: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        head_dim = dim // num_heads
        shape = (kernel_size**2, num_queries, num_heads)
        self.num_heads = num_heads
        self.proj_k = nn.Linear(dim, dim, bias=False)
        self.proj_v = nn.Linear(dim, dim, bias=False)
        self.proj_out = nn.Linear(dim, dim, bias=False)
        self.proj_drop = nn.Dropout(drop_rate)
        self.q_param = nn.Parameter(
            torch.empty(num_queries, num_heads, head_dim)
        )
        self.attn_scale = nn.Parameter(torch.empty(shape))
        self.rpb_table = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.q_param, std=head_dim**-0.5)
        nn.init.normal_(self.attn_scale, std=0.02)
        nn.init.trunc_normal_(self.rpb_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        heads = (self.num_heads, -1)
        out = learned_query_attention(
            self.q_param,
            unflatten(self.proj_k(x), -1, heads),
            unflatten(self.proj_v(x), -1, heads),
            self.rpb_table,
            self.attn_scale,
        )
        return self.proj_drop(self.proj_out(out.flatten(-2)))
