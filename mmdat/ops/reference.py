# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Every formula in plain PyTorch, with all intermediate results.

It is slow and needs much memory, but is easy to read. The fast backends are
tested against it, and it is tested against an independent float64 reference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .position_bias import PositionBias
from .windows import WindowLayout, split_windows


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale q k^T + bias) v over the last two axes."""
    scores = scale * (q @ k.transpose(-2, -1))
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(dim=-1)
    if dropout:  # files would hold one that trains, of rate 0
        weights = F.dropout(weights, dropout)
    return weights.to(v.dtype) @ v


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.deformable_attention``."""
    scores = None if bias is None else bias.rows(0, q.shape[2])
    return attention(q, k, v, scores, scale, dropout)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.neighborhood_attention``; gathers every key."""
    height, width = q.shape[1:3]
    keys, moves = [], []
    for n in (height, width):
        query = torch.arange(n, device=q.device)[:, None]
        first = (query - kernel_size // 2).clamp(0, n - kernel_size)
        key = first + torch.arange(kernel_size, device=q.device)
        keys.append(key)  # n, K
        moves.append(key - query + kernel_size - 1)
    rows = keys[0][:, None, :, None]  # H, 1, K, 1
    columns = keys[1][None, :, None, :]  # 1, W, 1, K
    bias = bias_table[:, moves[0][:, None, :, None], moves[1][None, :, None]]
    bias = bias.permute(1, 2, 0, 3, 4).flatten(-2)  # H, W, heads, K K

    def neighbours(x: Tensor) -> Tensor:
        x = x[:, rows, columns].flatten(3, 4)  # B, H, W, K K, heads, d
        return x.transpose(3, 4)  # B, H, W, heads, K K, d

    out = attention(
        q[..., None, :],  # B, H, W, heads, 1, d
        neighbours(k),
        neighbours(v),
        bias[..., None, :],
        scale,
        dropout,
    )
    return out.squeeze(-2)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.window_attention``; one mask for each window."""
    size, shift = layout.size, layout.shift
    if shift:
        rows, columns = layout.grid()
        y = torch.arange(rows * size, device=q.device)
        x = torch.arange(columns * size, device=q.device)
        # Of the padded map rolled to the top left: before the last window,
        # in it, and what came around from the other end.
        part_y = (y >= (rows - 1) * size).int() + (y >= rows * size - shift)
        part_x = (x >= (columns - 1) * size).int() + (
            x >= columns * size - shift
        )
        region = (part_y[:, None] + 3 * part_x).roll((shift, shift), (0, 1))
        padded = layout._replace(height=rows * size, width=columns * size)
        region = split_windows(region[None, :, :, None], padded)
        region = region.squeeze(-1)  # n, 1, w w
        apart = region[..., :, None] != region[..., None, :]
        bias = bias.masked_fill(apart[:, :, None], float('-inf'))
    out = attention(
        *(t.transpose(2, 3) for t in (q, k, v)), bias, scale, dropout
    )
    return out.transpose(2, 3)
