# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Plain PyTorch: every intermediate written out, nothing clever.

Slow and hungry for memory, but readable at a glance; the fast backends are
tested against it and it against an independent float64 oracle.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..position_bias import PositionBias


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
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return weights.to(v.dtype) @ v


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.deformable_attention`."""
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
    """See :func:`mmdat.ops.neighborhood_attention`; gathers every key."""
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
    window_size: int,
    shift: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.window_attention`; one mask over all windows."""
    height, width = q.shape[1:3]
    rows, columns = height // window_size, width // window_size

    def partition(x: Tensor) -> Tensor:
        x = x.unflatten(1, (rows, window_size))
        x = x.unflatten(3, (columns, window_size))
        x = x.permute(0, 1, 3, 5, 2, 4, 6)  # B, rows, columns, heads, w, w, d
        return x.flatten(4, 5)

    if shift:
        q, k, v = (x.roll((-shift, -shift), (1, 2)) for x in (q, k, v))
        region = torch.zeros(height, width, device=q.device)
        for axis, n in enumerate((height, width)):
            part = torch.zeros(n, device=q.device)
            part[n - window_size :] = 1
            part[n - shift :] = 2
            region += part[:, None] if axis == 0 else 3 * part
        region = partition(region[None, :, :, None, None])[..., 0]
        apart = region[..., :, None] != region[..., None, :]
        bias = bias.masked_fill(apart, float('-inf'))
    out = attention(
        partition(q), partition(k), partition(v), bias, scale, dropout
    )
    out = out.unflatten(4, (window_size, window_size))
    out = out.permute(0, 1, 4, 2, 5, 3, 6)  # B, rows, w, columns, w, heads, d
    out = out.flatten(3, 4).flatten(1, 2)
    return out.roll((shift, shift), (1, 2)) if shift else out
