# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Windows and neighbourhoods as graphs that are right at any size.

An exported graph cannot handle regions of a map separately, because their
number depends on the size. So every window has a separate mask.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..gathering import cut_windows, join_windows
from ..reference import attention
from ..sizes import at_least


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    layout: tuple[int, int, int, int],
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.window_attention``."""
    height, width, size, shift = layout
    if shift:
        cut = cut_windows(height, width, size, q.device)
        # Of the map rolled to the top left: what came from its other end.
        around_y = cut.row * size + cut.y >= cut.rows * size - shift
        around_x = cut.column * size + cut.x >= cut.columns * size - shift
        end = around_y.int() + 2 * around_x.int()  # n, w w
        apart = end[:, :, None] != end[:, None]
        bias = bias.masked_fill(apart[:, None, None], float('-inf'))
    out = attention(
        *(t.transpose(2, 3) for t in (q, k, v)), bias, scale, dropout
    )
    return out.transpose(2, 3)


class _Axis(NamedTuple):
    """What n tiles of queries see along an axis.

    Attributes:
        query: Place of each query, (n, Q).
        key: Place of each key, (n, S).
        move: Key - query as a place in the bias table, (n, Q, S).
        inside: Whether the key is in the query's neighbourhood, (n, Q, S).
    """

    query: Tensor
    key: Tensor
    move: Tensor
    inside: Tensor


def _axis(
    length: int, kernel_size: int, tile: Tensor, query: Tensor, key: Tensor
) -> _Axis:
    """Places along an axis at least as long as the neighbourhood.

    Args:
        length: Of the axis.
        kernel_size: K; a tile has K queries, and 2K - 1 keys or fewer.
        tile: Number of each tile, (n, 1).
        query: Places of the queries in a tile, (Q,).
        key: Places of the keys in a tile, (S,).
    """
    half, span = kernel_size // 2, 2 * kernel_size - 1
    start = (tile * kernel_size - half).clamp(0, at_least(length - span, 0))
    key = start + key
    query = tile * kernel_size + query
    first = (query - half).clamp(0, length - kernel_size)
    past = key[:, None] - first[:, :, None]
    move = key[:, None] - query[:, :, None] + kernel_size - 1
    # Positions outside the map are masked; they read its last position.
    return _Axis(
        query.clamp(max=length - 1),
        key.clamp(max=length - 1),
        move.clamp(0, span - 1),
        (past >= 0) & (past < kernel_size),
    )


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.neighborhood_attention``, in tiles of K x K."""
    height, width = q.shape[1:3]
    span = 2 * kernel_size - 1
    cut = cut_windows(height, width, kernel_size, q.device)
    place = torch.arange(span * span, device=q.device)
    y = _axis(height, kernel_size, cut.row, cut.y, place // span)
    x = _axis(width, kernel_size, cut.column, cut.x, place % span)
    bias = bias_table.flatten(1)[:, y.move * span + x.move]
    bias = bias.masked_fill(~(y.inside & x.inside), float('-inf'))
    q = q[:, y.query, x.query]  # B, n, K K, heads, d
    k, v = (t[:, y.key, x.key] for t in (k, v))
    out = attention(
        *(t.transpose(2, 3) for t in (q, k, v)),
        bias.transpose(0, 1),
        scale,
        dropout,
    )
    tiles = out.transpose(2, 3).transpose(0, 1)
    return join_windows(tiles, height, width, kernel_size, 0)
