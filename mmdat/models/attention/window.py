# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""L and S: attention in windows, plain and shifted."""

import torch
from torch import Tensor, nn

from ...ops import window_attention
from ...ops.cpu import fused_window
from ...ops.precision import product_type
from ...ops.sizes import unflatten
from ...ops.window_attention import chosen_by_name, window_bias
from ...ops.windows import WindowLayout, join_windows, split_windows
from ..fused import Piece, project
from ..stock import calls_by_the_seam, may_be_one_piece


@calls_by_the_seam('proj_qkv', 'proj_out')
@may_be_one_piece(proj_qkv=nn.Linear, proj_out=nn.Linear, proj_drop=nn.Dropout)
class WindowAttention(nn.Module):
    """Multi-head attention within the windows of a map.

    The map is padded with zeros at the bottom right to a multiple of the
    window size; padded positions are ordinary keys.

    Args:
        dim: Channels.
        num_heads: Heads.
        window_size: Side of a window.
        shift: Shift of the windows in positions. DAT shifts by
            ``ceil(window_size / 2)``; Swin rounds down.
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout on the output.
        backend: See ``mmdat.ops.window_attention``.
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

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        height, width = x.shape[1:3]
        layout = WindowLayout(height, width, self.window_size, self.shift)
        # Cut before the projection, which triples the channels.
        windows = split_windows(x, layout, product_type(x))
        qkv = project(self.proj_qkv, windows)
        qkv = unflatten(qkv, -1, (3, self.num_heads, -1))  # n, B, w w, ...
        out = window_attention(
            *qkv.unbind(3),
            self.relative_position_bias_table,
            layout,
            dropout=self.attn_drop_rate if self.training else 0.0,
            backend=self.backend,
        )
        out = project(self.proj_out, out.flatten(-2))
        return self.proj_drop(join_windows(out, layout))

    def as_piece(self) -> Piece | None:
        """Returns all layers as one function, None if a backend is set."""
        if chosen_by_name(self.backend) or (
            self.training and self.attn_drop_rate
        ):
            return None
        qkv, out = self.proj_qkv, self.proj_out
        bias = window_bias(self.relative_position_bias_table, self.window_size)
        return Piece(
            fused_window.window_attention,
            (qkv.weight, qkv.bias, out.weight, out.bias, bias),
            (self.window_size, self.shift),
        )
