# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""L and S: attention in windows, plain and shifted."""

from functools import partial

import torch
from torch import Tensor, nn

from ...ops import window_self_attention
from ...ops.norm import Norm, around
from ...ops.window_self_attention import between_layers
from ...ops.windows import WindowLayout
from ..layers import are_plain, does_nothing


class WindowAttention(nn.Module):
    """Multi-head attention within the windows of a map.

    The input is padded with zeros at the bottom right to a multiple of the
    window; padded positions act as ordinary keys.

    Args:
        dim: Channels.
        num_heads: Heads.
        window_size: Side of a window.
        shift: How far the windows are moved; DAT moves by
            ``ceil(window_size / 2)`` where Swin takes the floor.
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout on the output.
        backend: See :func:`mmdat.ops.window_self_attention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int = 0,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.attn_drop_rate = attn_drop_rate
        self.backend = backend
        self.proj_qkv = nn.Linear(dim, 3 * dim)
        self.proj_out = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)

    def forward(
        self, x: Tensor, norm: Norm | None = None, residual: bool = False
    ) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C), see `ops.norm.around`."""
        if residual and not does_nothing(self.proj_drop):
            return around(self.forward, x, norm, residual)
        qkv, out = self.proj_qkv, self.proj_out
        how = dict(
            bias_table=self.relative_position_bias_table,
            layout=WindowLayout(*x.shape[1:3], self.window_size, self.shift),
            dropout=self.attn_drop_rate if self.training else 0.0,
            backend=self.backend,
        )
        # The others are backends of what lies between the layers.
        if self.backend in (None, 'pieces') and are_plain(qkv, out):
            weights = qkv.weight, qkv.bias, out.weight, out.bias
            x = window_self_attention(
                x, *weights, norm=norm, residual=residual, **how
            )
        else:
            branch = partial(
                between_layers, project_qkv=qkv, project_out=out, **how
            )
            x = around(branch, x, norm, residual)
        return self.proj_drop(x)
