# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The layout of separable attention: tiles and blocks."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..position_bias import TableBias
from .bias import KeyBlock, cut_slices, slice_length

# Scores of one block, all heads together: they stay in the cache of a core.
BLOCK_SCORES = 900_000
# Fewer columns need shorter slices of the table, more columns fewer of them.
TILE_COLUMNS = 96
BLOCK_KEYS = 256
LOG_2 = math.log(2)


class Tile(NamedTuple):
    """A part of the output.

    Attributes:
        pairs: Pairs of image and head group.
        heads: The heads of these pairs.
        columns: Columns of the query map.
        rows: Rows of the query map.
    """

    pairs: slice
    heads: slice
    columns: slice
    rows: slice


class Plan(NamedTuple):
    """Sides of tiles, and of the blocks of keys and rows in them.

    Attributes:
        pairs: Pairs of image and head group in a tile.
        columns: Columns of a tile.
        block_keys: Keys of a block.
        block_rows: Rows of a block.
    """

    pairs: int
    columns: int
    block_keys: int
    block_rows: int


def _even(total: int, most: int) -> int:
    """The size of parts of at most `most` that are as equal as can be."""
    return math.ceil(total / math.ceil(total / max(most, 1)))


def make_plan(
    pairs: int, heads: int, height: int, width: int, keys: int, threads: int
) -> Plan:
    """Chooses blocks for `pairs` times `heads` heads of a map."""
    columns = _even(width, TILE_COLUMNS)
    block_keys = _even(keys, BLOCK_KEYS)
    room = max(BLOCK_SCORES // (heads * columns * block_keys), 1)
    tile_pairs = 1
    if block_keys == keys and room > height:
        tile_pairs = _even(-(-pairs // threads), room // height)
    return Plan(tile_pairs, columns, block_keys, _even(height, room))


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def working_dtype(q: Tensor, points_yx: Tensor) -> torch.dtype:
    """The type of the computation: float32, or wider if an input is."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.promote_types(wide, points_yx.dtype)


class Problem:
    """Tensors of one call, laid out for the blocks."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: TableBias, scale: float
    ) -> None:
        # In other threads PyTorch would follow the operations of a leaf.
        q, k, v, *bias = (t.detach() for t in (q, k, v, *bias))
        bias = TableBias(*bias)
        dtype = working_dtype(q, bias.points_yx)
        batch, heads, _, self.dim = q.shape
        self.groups = bias.points_yx.shape[1]
        self.heads = heads // self.groups
        self.pairs = batch * self.groups
        self.keys = k.shape[2]
        self.height, self.width = bias.query_y.numel(), bias.query_x.numel()
        self.plan = make_plan(
            self.pairs,
            self.heads,
            self.height,
            self.width,
            self.keys,
            torch.get_num_threads(),
        )
        self.q = self.as_maps(q.to(dtype))
        k = k.to(dtype).reshape(-1, self.keys, self.dim) * (scale / LOG_2)
        v = v.to(dtype).reshape(-1, self.keys, self.dim)
        # The ones subtract the row max from all scores, and add up the
        # weights to the row sum.
        ones = k.new_ones(*k.shape[:2], 1)
        self.k, self.v = torch.cat([k, ones], -1), torch.cat([v, ones], -1)
        self.bias = TableBias(*(t.to(dtype) for t in bias))
        # B g, Ns, 2 -> Ns, B g, 2
        self.points_yx = self.bias.points_yx.reshape(
            self.pairs, self.keys, 2
        ).transpose(0, 1)
        length = slice_length(
            self.bias.query_x, self.plan.columns, bias.table.shape[2]
        )
        self.slices = cut_slices(self.bias.table / LOG_2, self.groups, length)
        plan = self.plan
        self.block_size = (
            plan.block_keys
            * plan.pairs
            * self.heads
            * plan.block_rows
            * plan.columns
        )

    def as_maps(self, x: Tensor) -> Tensor:
        """(B, heads, H W, d) as (B heads, H, W, d)."""
        return x.reshape(-1, self.height, self.width, x.shape[-1])

    def tiles(self) -> list[Tile]:
        """All tiles of the output, as many for each thread.

        Those that are left over are cut into bands of rows.
        """
        places = [
            (pairs, columns)
            for pairs in _slices(self.pairs, self.plan.pairs)
            for columns in _slices(self.width, self.plan.columns)
        ]
        threads = torch.get_num_threads()
        whole = len(places) // threads * threads
        tiles = []
        for i, (pairs, columns) in enumerate(places):
            heads = slice(pairs.start * self.heads, pairs.stop * self.heads)
            bands = _slices(
                self.height,
                self.height if i < whole else -(-self.height // threads),
            )
            tiles += [Tile(pairs, heads, columns, rows) for rows in bands]
        return tiles

    def key_blocks(
        self, tile: Tile, most: int | None = None
    ) -> Iterator[tuple[slice, KeyBlock]]:
        """Blocks of keys with their bias on the queries of a tile.

        Args:
            tile: The tile.
            most: Take the first so many keys only.
        """
        groups = torch.arange(
            tile.pairs.start, tile.pairs.stop, device=self.points_yx.device
        )
        stop = min(most or self.keys, self.keys)
        for keys in _slices(stop, self.plan.block_keys):
            yield (
                keys,
                KeyBlock(
                    self.bias,
                    self.slices,
                    self.points_yx[keys, tile.pairs],
                    groups % self.groups,
                    tile.rows,
                    tile.columns,
                ),
            )

    def scores(
        self,
        block: KeyBlock,
        mixed: Tensor,
        k: Tensor,
        q: Tensor,
        buffer: Tensor,
    ) -> Tensor:
        """Scores of a block with their bias over log 2, in the buffer.

        Args:
            block: Its bias.
            mixed: Rows of the table for the rows of queries.
            k: Scaled keys and a one (heads of the pairs, n, d + 1).
            q: Queries and what is added to all their scores (heads of the
                pairs, d + 1, Q).
            buffer: Room for as many numbers.

        Returns:
            Scores (n, heads of the pairs, Q).
        """
        shape = block.keys, len(q), q.shape[2]
        scores = buffer[: math.prod(shape)].view(shape)
        torch.bmm(
            mixed,
            block.hats,
            out=scores.view(len(mixed), mixed.shape[1], -1),
        )
        by_head = scores.transpose(0, 1)
        torch.baddbmm(by_head, k, q, out=by_head)
        return scores

    def row_blocks(self, tile: Tile) -> Iterator[tuple[slice, slice]]:
        """Blocks of a tile, as its rows and as ranges of its queries."""
        width = tile.columns.stop - tile.columns.start
        height = tile.rows.stop - tile.rows.start
        for rows in _slices(height, self.plan.block_rows):
            yield rows, slice(rows.start * width, rows.stop * width)


def cut(maps: Tensor, tile: Tile) -> Tensor:
    """Queries of a tile (heads, d, Q)."""
    maps = maps[tile.heads, tile.rows, tile.columns].permute(0, 3, 1, 2)
    return maps.reshape(*maps.shape[:2], -1)


def put(maps: Tensor, tile: Tile, queries: Tensor) -> None:
    """The reverse of ``cut``."""
    place = maps[tile.heads, tile.rows, tile.columns].permute(0, 3, 1, 2)
    place.copy_(queries.view_as(place))
