# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Neighbourhood attention as dense attention between small tiles.

Neighbourhoods have the same form all over the map, except at its borders.
Tiles of the same form are batched into one call of fused attention with one
small bias. So the only tensor of the size of the map times the size of the
neighbourhood are the keys of overlapping neighbourhoods. On a CPU the backward
pass cuts these again instead of storing them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..custom_op import (
    HAS_OPERATORS,
    is_compiling,
    is_exporting,
    operator,
    recompute_in_backward,
)
from . import any_size
from . import shared_bias as small_bias


class Run(NamedTuple):
    """Consecutive tiles along one axis with the same form.

    Attributes:
        query: First query of the first tile.
        key: First key of the first tile; both increase by `tile` per tile.
        tiles: Number of tiles.
        tile: Queries of a tile.
        span: Keys of a tile.
        first_key: For each query of a tile, the first key of its neighbourhood
            among the keys of the tile.
    """

    query: int
    key: int
    tiles: int
    tile: int
    span: int
    first_key: tuple[int, ...]


def neighborhood_runs(length: int, tile: int, kernel_size: int) -> list[Run]:
    """Cuts one axis into runs of tiles for neighbourhood attention."""
    span = min(tile + kernel_size - 1, length)
    runs: list[Run] = []
    for query in range(0, length, tile):
        key = min(max(query - kernel_size // 2, 0), length - span)
        first_key = tuple(
            min(max(i - kernel_size // 2, 0), length - kernel_size) - key
            for i in range(query, query + tile)
        )
        last = runs[-1] if runs else None
        if last and (last.query - last.key, last.first_key) == (
            query - key,
            first_key,
        ):
            runs[-1] = last._replace(tiles=last.tiles + 1)
        else:
            runs.append(Run(query, key, 1, tile, span, first_key))
    return runs


def _tile(length: int, kernel_size: int) -> int:
    """Queries of a tile: a short axis is not cut."""
    return length if length <= 2 * kernel_size else kernel_size


class _Region(NamedTuple):
    """Tiles of the same form.

    Attributes:
        y: Their run of rows.
        x: Their run of columns.
        index: Entry of the flat bias table for each pair (T, S) of a query
            and a key of a tile.
        inside: Whether the key is in the query's neighbourhood, (T, S).
    """

    y: Run
    x: Run
    index: Tensor
    inside: Tensor

    def bias(self, table: Tensor) -> Tensor:
        """Bias and mask of a tile, (heads, T, S)."""
        bias = table.flatten(1)[:, self.index]
        return bias.masked_fill(~self.inside, float('-inf'))

    def queries(self, x: Tensor) -> Tensor:
        """The queries of the tiles, (n, heads, T, d)."""
        return _cut(
            x,
            (self.y.query, self.y.tiles, self.y.tile, self.y.tile),
            (self.x.query, self.x.tiles, self.x.tile, self.x.tile),
        )

    def keys(self, x: Tensor) -> Tensor:
        """The keys of the tiles, which overlap, (n, heads, S, d)."""
        return _cut(
            x,
            (self.y.key, self.y.tiles, self.y.span, self.y.tile),
            (self.x.key, self.x.tiles, self.x.span, self.x.tile),
        )

    def join(self, tiles: Tensor, batch: int) -> Tensor:
        """Puts (n, heads, T, d) side by side again, (B, H', W', heads, d)."""
        x = tiles.unflatten(0, (batch, self.y.tiles, self.x.tiles))
        x = x.unflatten(4, (self.y.tile, self.x.tile))
        x = x.permute(0, 1, 4, 2, 5, 3, 6)  # B, ny, ty, nx, tx, heads, d
        return x.flatten(3, 4).flatten(1, 2)

    def add_keys(self, tiles: Tensor, total: Tensor) -> None:
        """Adds (n, heads, S, d) to the map where the keys were cut."""
        batch, y, x = len(total), self.y, self.x
        tiles = tiles.unflatten(0, (batch, y.tiles, x.tiles))
        tiles = tiles.unflatten(4, (y.span, x.span))
        tiles = tiles.permute(0, 1, 2, 3, 6, 4, 5)  # ..., heads, d, sy, sx
        # Pieces no larger than the step do not overlap each other.
        for top in range(0, y.span, y.tile):
            high = min(y.tile, y.span - top)
            for left in range(0, x.span, x.tile):
                wide = min(x.tile, x.span - left)
                place = _windows(
                    total,
                    (y.key + top, y.tiles, high, y.tile),
                    (x.key + left, x.tiles, wide, x.tile),
                )
                place += tiles[..., top : top + high, left : left + wide]


def _windows(
    x: Tensor,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
) -> Tensor:
    """Views of (B, H, W, heads, d) as (B, ny, nx, heads, d, sy, sx).

    Each of `rows` and `columns` is the start, the number of tiles, their side
    and the step from one to the next.
    """
    (y, ny, sy, step_y), (left, nx, sx, step_x) = rows, columns
    x = x[:, y : y + (ny - 1) * step_y + sy]
    x = x[:, :, left : left + (nx - 1) * step_x + sx]
    return x.unfold(1, sy, step_y).unfold(2, sx, step_x)


def _cut(
    x: Tensor,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
) -> Tensor:
    """Copies of ``_windows``, (B ny nx, heads, sy sx, d)."""
    x = _windows(x, rows, columns).permute(0, 1, 2, 3, 5, 6, 4)
    return x.flatten(4, 5).flatten(0, 2)


def _regions(
    height: int, width: int, kernel_size: int, device: torch.device
) -> Iterator[_Region]:
    """All tiles of a map, row by row."""
    side = 2 * kernel_size - 1

    def pairs(run: Run, length: int) -> tuple[Tensor, Tensor]:
        """Move key - query in the table, and who are neighbours, (T, S)."""
        key = torch.arange(run.span, device=device)
        query = torch.arange(run.tile, device=device)[:, None]
        first = (query + (run.query - kernel_size // 2)).clamp(
            0, length - kernel_size
        ) - run.key
        move = key - query + (run.key - run.query) + kernel_size - 1
        inside = (key >= first) & (key < first + kernel_size)
        return move.clamp(0, side - 1), inside

    runs_y, runs_x = (
        [
            (run, *pairs(run, n))
            for run in neighborhood_runs(n, _tile(n, kernel_size), kernel_size)
        ]
        for n in (height, width)
    )
    for y, move_y, inside_y in runs_y:
        for x, move_x, inside_x in runs_x:
            index = (
                move_y[:, None, :, None] * side + move_x[None, :, None, :]
            )  # ty, tx, sy, sx
            inside = inside_y[:, None, :, None] & inside_x[None, :, None, :]
            yield _Region(
                y,
                x,
                index.flatten(2).flatten(0, 1),
                inside.flatten(2).flatten(0, 1),
            )


def _pad_to_tiles(q: Tensor, kernel_size: int) -> Tensor:
    below, right = (-n % _tile(n, kernel_size) for n in q.shape[1:3])
    if below or right:
        return F.pad(q, (0, 0, 0, 0, 0, right, 0, below))
    return q


def _assemble(parts: list[tuple[_Region, Tensor]], like: Tensor) -> Tensor:
    """Puts the maps of all regions together, as large as `like`."""
    bands: dict[int, list[Tensor]] = {}
    for region, part in parts:
        bands.setdefault(region.y.query, []).append(part)
    whole = torch.cat(
        [torch.cat(band, dim=2) for band in bands.values()], dim=1
    )
    return whole[:, : like.shape[1], : like.shape[2]]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> Tensor:
    padded = _pad_to_tiles(q, kernel_size)
    outs = []
    for region in _regions(*q.shape[1:3], kernel_size, q.device):
        out = F.scaled_dot_product_attention(
            region.queries(padded),
            region.keys(k),
            region.keys(v),
            attn_mask=region.bias(table)[None],
            dropout_p=dropout,
            scale=scale,
        )
        outs.append((region, region.join(out, q.shape[0])))
    return _assemble(outs, q)


@operator('tiled_neighborhood_attention')
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    kernel_size: int,
    scale: float,
) -> Tensor:
    return _attend(q, k, v, table, kernel_size, scale, 0.0).contiguous()


@operator('tiled_neighborhood_attention_backward')
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    kernel_size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = q.shape[0]
    q_padded = _pad_to_tiles(q, kernel_size)
    grad = _pad_to_tiles(grad, kernel_size)
    k_grad, v_grad = k.new_zeros(k.shape), v.new_zeros(v.shape)
    table_grad = torch.zeros_like(table).flatten(1)
    q_grads = []
    for region in _regions(*q.shape[1:3], kernel_size, q.device):
        q_tiles, k_tiles, v_tiles, bias = small_bias.gradients(
            region.queries(grad),
            region.queries(q_padded),
            region.keys(k),
            region.keys(v),
            region.bias(table),
            scale,
        )
        q_grads.append((region, region.join(q_tiles, batch)))
        region.add_keys(k_tiles, k_grad)
        region.add_keys(v_tiles, v_grad)
        index = region.index.flatten().expand(len(table), -1)
        table_grad.scatter_add_(1, index, bias.flatten(1))
    q_grad = _assemble(q_grads, q).contiguous()
    return q_grad, k_grad, v_grad, table_grad.view(table.shape)


recompute_in_backward(_attention, _attention_backward, twice=True)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.neighborhood_attention``."""
    table = bias_table.to(q.dtype)
    if is_exporting():  # a graph for all sizes knows no regions
        return any_size.neighborhood_attention(
            q, k, v, table, kernel_size, scale, dropout
        )
    one_graph = is_compiling() and HAS_OPERATORS and not dropout
    if one_graph or small_bias.wants_recomputing(
        q, k, v, table, dropout=dropout
    ):
        return _attention(q, k, v, table, kernel_size, scale)
    return _attend(q, k, v, table, kernel_size, scale, dropout)
