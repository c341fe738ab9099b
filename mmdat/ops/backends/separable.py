# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention with a table bias, as matrix products in the cache.

Scores exist for one block of keys and queries at a time, keys first, since
that is how :mod:`table_blocks` makes their bias; sums over the keys are
carried on from block to block. The backward pass makes the weights of a block
again from the log-sum-exp of each query, so that training keeps nothing of
the size queries x keys either.

All scores are in units of log 2, because PyTorch's ``exp2`` takes a third of
the time of its ``exp`` on a CPU, at the same precision.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..position_bias import PositionBias, TableBias
from ..precision import at_least_float32, must_repeat_exactly
from . import threads
from .table_blocks import KeyBlock, cut_slices, join_slices, slice_length

# Scores of one block, all heads together: they stay in the cache of a core.
BLOCK_SCORES = 900_000
# Fewer columns need shorter slices of the table, more columns fewer of them.
TILE_COLUMNS = 48
BLOCK_KEYS = 256
# Keys whose scores give the level that is taken from all scores.
FIRST_KEYS = 16
LOG_2 = math.log(2)
# Below, the work that does not grow with the pairs weighs more; by whether
# gradients are wanted, as the backward pass gains sooner.
LEAST_PAIRS = {False: 2**20, True: 2**18}


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


class _Problem:
    """Tensors of one call, laid out for the blocks."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: TableBias, scale: float
    ) -> None:
        # In other threads PyTorch would follow the operations of a leaf.
        q, k, v, *bias = (t.detach() for t in (q, k, v, *bias))
        bias = TableBias(*bias)
        dtype = torch.promote_types(
            at_least_float32(q[:0]).dtype, bias.points_yx.dtype
        )
        batch, self.all_heads, _, self.dim = q.shape
        self.groups = bias.points_yx.shape[1]
        self.heads = self.all_heads // self.groups
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
        self.scale = scale
        self.q = self.as_maps(q.to(dtype))
        k = k.to(dtype).reshape(-1, self.keys, self.dim) * (scale / LOG_2)
        v = v.to(dtype).reshape(-1, self.keys, self.dim)
        # The ones take a level from all scores, and add up the weights.
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


def _cut(maps: Tensor, tile: Tile) -> Tensor:
    """Queries of a tile (heads, d, Q)."""
    maps = maps[tile.heads, tile.rows, tile.columns].permute(0, 3, 1, 2)
    return maps.reshape(*maps.shape[:2], -1)


def _put(maps: Tensor, tile: Tile, queries: Tensor) -> None:
    """The reverse of :func:`_cut`."""
    place = maps[tile.heads, tile.rows, tile.columns].permute(0, 3, 1, 2)
    place.copy_(queries.view_as(place))


def _with_level(q: Tensor, level: Tensor) -> Tensor:
    """Queries (heads, d, Q) and a row that takes `level` from all scores."""
    return torch.cat([q, -level[:, None]], dim=1)


def _add(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to `total`, for batches of matrices."""
    torch.baddbmm(total, a, b, out=total)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: TableBias, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, heads, H W, d) and log2-sum-exp (B, heads, H W)."""
    p = _Problem(q, k, v, bias, scale)
    out = torch.empty_like(p.q)
    lse = out.new_empty(*out.shape[:3], 1)

    def attend(tiles: Sequence[Tile]) -> None:
        buffer = out.new_empty(p.block_size)
        for tile in tiles:
            queries = _cut(p.q, tile)
            level = _highest(p, tile, queries, buffer, FIRST_KEYS)
            sums = _sums(p, tile, queries, level, buffer)
            if not sums.isfinite().all():
                # Later keys outdo the first by more than float32 can hold.
                level = _highest(p, tile, queries, buffer)
                sums = _sums(p, tile, queries, level, buffer)
            mean, total = sums[:, :-1], sums[:, -1:]
            _put(out, tile, mean / total)
            _put(lse, tile, level[:, None] + total.log2())

    threads.run(attend, p.tiles())
    return out.view(q.shape).to(q.dtype), lse.view(q.shape[:3])


def _highest(
    p: _Problem,
    tile: Tile,
    queries: Tensor,
    buffer: Tensor,
    most: int | None = None,
) -> Tensor:
    """The highest score of each query of a tile, (heads, Q).

    Exponentials are taken of scores less this level. Any level near the
    highest score will do, so that of a few keys is tried first.
    """
    level = queries.new_full((len(queries), queries.shape[2]), -math.inf)
    queries = _with_level(queries, torch.zeros_like(level))
    for keys, block in p.key_blocks(tile, most):
        for rows, part in p.row_blocks(tile):
            scores = p.scores(
                block,
                block.mixed_rows(rows),
                p.k[tile.heads, keys],
                queries[:, :, part],
                buffer,
            )
            level[:, part] = torch.maximum(level[:, part], scores.amax(0))
    return level


def _sums(
    p: _Problem, tile: Tile, queries: Tensor, level: Tensor, buffer: Tensor
) -> Tensor:
    """Values and ones, weighted by exponentials and summed over the keys.

    Returns:
        Tensor (heads, d + 1, Q).
    """
    queries = _with_level(queries, level)
    sums = torch.zeros_like(queries)
    for keys, block in p.key_blocks(tile):
        values = p.v[tile.heads, keys].mT.contiguous()
        for rows, part in p.row_blocks(tile):
            weights = p.scores(
                block,
                block.mixed_rows(rows),
                p.k[tile.heads, keys],
                queries[:, :, part],
                buffer,
            ).exp2_()
            _add(sums[:, :, part], values, weights.transpose(0, 1))
    return sums


class _Gradients:
    """What one thread adds up over its tiles."""

    def __init__(self, p: _Problem) -> None:
        self.k = p.q.new_zeros(*p.v.shape[:2], p.dim)
        self.v = torch.zeros_like(self.k)
        self.slices = torch.zeros_like(p.slices.values)
        self.points_yx = torch.zeros_like(p.points_yx)

    def __iadd__(self, other: '_Gradients') -> '_Gradients':
        self.k += other.k
        self.v += other.v
        self.slices += other.slices
        self.points_yx += other.points_yx
        return self


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: TableBias,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the table and the points."""
    p = _Problem(q, k, v, bias, scale)
    grad = grad.to(p.q.dtype)
    delta = p.as_maps((grad * out.to(grad.dtype)).sum(-1, keepdim=True))
    lse, grad = p.as_maps(lse[..., None]), p.as_maps(grad)
    q_grad = torch.empty_like(p.q)

    def differentiate(tiles: Sequence[Tile]) -> _Gradients:
        gradients = _Gradients(p)
        buffers = grad.new_empty(2, p.block_size)
        for tile in tiles:
            queries, grads = _cut(p.q, tile), _cut(grad, tile)
            leveled = _with_level(queries, _cut(lse, tile)[:, 0])
            tile_delta = _cut(delta, tile)[:, 0]
            queries_grad = torch.zeros_like(queries)
            for keys, block in p.key_blocks(tile):
                at = tile.heads, keys
                block.start_gradients()
                for rows, part in p.row_blocks(tile):
                    mixed = block.mixed_rows(rows)
                    weights = p.scores(
                        block, mixed, p.k[at], leveled[:, :, part], buffers[0]
                    ).exp2_()
                    by_head = weights.transpose(0, 1)
                    _add(gradients.v[at], by_head, grads[:, :, part].mT)
                    d = buffers[1, : weights.numel()].view_as(weights)
                    by_head = d.transpose(0, 1)
                    torch.bmm(
                        p.v[at][..., :-1], grads[:, :, part], out=by_head
                    )
                    d.sub_(tile_delta[:, part]).mul_(weights)
                    _add(gradients.k[at], by_head, queries[:, :, part].mT)
                    _add(
                        queries_grad[:, :, part],
                        p.k[at][..., :-1].mT,
                        by_head,
                    )
                    block.add_gradients(
                        rows,
                        mixed,
                        d.view(len(mixed), mixed.shape[1], -1),
                        gradients.slices,
                    )
                gradients.points_yx[keys, tile.pairs] += block.points_grad()
            _put(q_grad, tile, queries_grad)
        return gradients

    total, *others = threads.run(differentiate, p.tiles())
    for gradients in others:
        total += gradients
    points_grad = total.points_yx.transpose(0, 1).reshape(bias.points_yx.shape)
    # Keys, and slices of the table, are divided by log 2 already.
    return (
        (q_grad * LOG_2).view(q.shape).to(q.dtype),
        (total.k * scale).view(k.shape).to(k.dtype),
        total.v.view(v.shape).to(v.dtype),
        join_slices(total.slices, p.slices, bias.table).to(bias.table.dtype),
        (points_grad * LOG_2).to(bias.points_yx.dtype),
    )


def _operators() -> tuple | None:
    """Registers both passes with torch, so that ``torch.compile`` takes them.

    Returns:
        The forward operator in a tuple, None where torch is too old.
    """
    custom_op = getattr(torch.library, 'custom_op', None)
    if custom_op is None:
        return None

    @custom_op('mmdat::separable_attention', mutates_args=())
    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        query_y: Tensor,
        query_x: Tensor,
        points_yx: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        bias = TableBias(table, query_y, query_x, points_yx)
        return _forward(q, k, v, bias, scale)

    @attend.register_fake
    def _(q, k, v, table, query_y, query_x, points_yx, scale):
        dtype = torch.promote_types(
            torch.promote_types(q.dtype, torch.float32), points_yx.dtype
        )
        out = q.new_empty(q.shape)
        return out, q.new_empty(q.shape[:3], dtype=dtype)

    @custom_op('mmdat::separable_attention_backward', mutates_args=())
    def attend_backward(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        query_y: Tensor,
        query_x: Tensor,
        points_yx: Tensor,
        scale: float,
        out: Tensor,
        lse: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        bias = TableBias(table, query_y, query_x, points_yx)
        return _backward(grad, q, k, v, bias, scale, out, lse)

    @attend_backward.register_fake
    def _(grad, q, k, v, table, query_y, query_x, points_yx, scale, out, lse):
        return tuple(t.new_empty(t.shape) for t in (q, k, v, table, points_yx))

    def keep(ctx, inputs, output):
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors, *output)

    def backward(ctx, grad, _):
        *tensors, out, lse = ctx.saved_tensors
        q, k, v, table, points_yx = attend_backward(
            grad, *tensors, ctx.scale, out, lse
        )
        return q, k, v, table, None, None, points_yx, None

    attend.register_autograd(backward, setup_context=keep)
    return (attend,)


_OPERATORS = _operators()


def declines(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Why this backend cannot run, or None."""
    if _OPERATORS is None:
        return f'torch 2.4 or newer is needed; this is {torch.__version__}.'
    if not isinstance(bias, TableBias):
        return f'it reads bias tables only; got {type(bias).__name__}.'
    if dropout:
        return f'it drops no attention weights; got dropout={dropout}.'
    return None


def yields(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Why reading the table pair by pair is faster, or None."""
    if must_repeat_exactly(q):
        return None
    if q.device.type != 'cpu':
        return f'its blocks are made for caches of CPUs; got {q.device}.'
    pairs = q.shape[2] * k.shape[2]
    least = LEAST_PAIRS[torch.is_grad_enabled()]
    if pairs < least:
        return f'it pays from {least} pairs of query and key on; got {pairs}.'
    return None


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: TableBias,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """See :func:`mmdat.ops.deformable_attention`."""
    return _OPERATORS[0](q, k, v, *bias, scale)[0]
