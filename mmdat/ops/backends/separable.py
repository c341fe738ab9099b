# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention with a table bias, as matrix products in the cache.

Scores exist for one block of keys and queries at a time, keys first, since
that is how :mod:`table_blocks` makes their bias; the softmax is carried on
from block to block. The backward pass makes the scores of a block again from
the log-sum-exp of each query, so that training keeps nothing of the size
queries x keys either.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..position_bias import PositionBias, TableBias
from ..precision import at_least_float32
from .table_blocks import KeyBlock, cut_slices, join_slices, slice_length

# Scores of one block, all heads together: they stay in the cache of two cores.
BLOCK_SCORES = 900_000
# Fewer columns need shorter slices of the table, more columns fewer of them.
TILE_COLUMNS = 84
BLOCK_KEYS = 512


class Plan(NamedTuple):
    """Sides of the blocks.

    Attributes:
        pairs: Pairs of image and head group in a block.
        columns: Columns of the query map.
        keys: Keys.
        rows: Rows of the query map.
    """

    pairs: int
    columns: int
    keys: int
    rows: int


def _even(total: int, most: int) -> int:
    """The size of parts of at most `most` that are as equal as can be."""
    return math.ceil(total / math.ceil(total / max(most, 1)))


def make_plan(
    pairs: int, heads: int, height: int, width: int, keys: int
) -> Plan:
    """Chooses blocks for `pairs` times `heads` heads of a map."""
    columns = _even(width, TILE_COLUMNS)
    block_keys = _even(keys, BLOCK_KEYS)
    room = BLOCK_SCORES // (heads * columns * block_keys)
    rows = _even(height, room)
    block_pairs = _even(pairs, room // rows) if block_keys == keys else 1
    return Plan(block_pairs, columns, block_keys, rows)


def _slices(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


class _Problem:
    """Tensors of one call, laid out for the blocks."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: TableBias, scale: float
    ) -> None:
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
            self.pairs, self.heads, self.height, self.width, self.keys
        )
        self.scale = scale
        self.q = self.as_maps(q.to(dtype))
        k = k.to(dtype).reshape(-1, self.keys, self.dim) * scale
        self.k = torch.cat([k, k.new_ones(*k.shape[:2], 1)], dim=-1)
        self.v = v.to(dtype).reshape(-1, self.keys, self.dim)
        self.bias = TableBias(*(t.to(dtype) for t in bias))
        # B g, Ns, 2 -> Ns, B g, 2
        self.points_yx = self.bias.points_yx.reshape(
            self.pairs, self.keys, 2
        ).transpose(0, 1)
        length = slice_length(
            self.bias.query_x, self.plan.columns, bias.table.shape[2]
        )
        self.slices = cut_slices(self.bias.table, self.groups, length)
        plan = self.plan
        self.block_size = (
            plan.keys * plan.pairs * self.heads * plan.rows * plan.columns
        )

    def as_maps(self, x: Tensor) -> Tensor:
        """(B, heads, H W, d) as (B heads, H, W, d)."""
        return x.reshape(-1, self.height, self.width, self.dim)

    def tiles(self) -> Iterator[tuple[slice, slice, slice]]:
        """Pairs, their heads, and columns of each tile."""
        for pairs in _slices(self.pairs, self.plan.pairs):
            heads = slice(pairs.start * self.heads, pairs.stop * self.heads)
            for columns in _slices(self.width, self.plan.columns):
                yield pairs, heads, columns

    def key_block(self, keys: slice, pairs: slice, columns: slice) -> KeyBlock:
        """The bias of some keys."""
        groups = torch.arange(
            pairs.start, pairs.stop, device=self.points_yx.device
        )
        return KeyBlock(
            self.bias,
            self.slices,
            self.points_yx[keys, pairs],
            groups % self.groups,
            columns,
        )

    def scores(
        self,
        block: KeyBlock,
        mixed: Tensor,
        k: Tensor,
        q: Tensor,
        buffer: Tensor,
    ) -> Tensor:
        """Scores of a block with their bias, in the buffer.

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

    def row_blocks(self, columns: slice) -> Iterator[tuple[slice, slice]]:
        """Rows of a tile, as rows and as ranges of its queries."""
        width = columns.stop - columns.start
        for rows in _slices(self.height, self.plan.rows):
            yield rows, slice(rows.start * width, rows.stop * width)


def _tile(maps: Tensor, heads: slice, columns: slice) -> Tensor:
    """Queries of a tile (heads, d, H * columns)."""
    tile = maps[heads, :, columns].permute(0, 3, 1, 2)
    return tile.reshape(*tile.shape[:2], -1)


def _put(maps: Tensor, heads: slice, columns: slice, tile: Tensor) -> None:
    """The reverse of :func:`_tile`."""
    place = maps[heads, :, columns]
    place.copy_(tile.view(len(tile), -1, *place.shape[1:3]).permute(0, 2, 3, 1))


def _with_level(q: Tensor, level: Tensor) -> Tensor:
    """Queries (heads, d, Q) and a row that takes `level` from all scores."""
    return torch.cat([q, -level[:, None]], dim=1)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: TableBias, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, heads, H W, d) and log-sum-exp (B, heads, H W)."""
    p = _Problem(q, k, v, bias, scale)
    out = torch.empty_like(p.q)
    lse = out.new_empty(out.shape[:3])
    buffer = out.new_empty(p.block_size)
    for tile in p.tiles():
        _, heads, columns = tile
        queries = _tile(p.q, heads, columns)
        level = _highest(p, tile, queries, buffer, first_block_only=True)
        total, mean = _sums(p, tile, queries, level, buffer)
        if not total.isfinite().all():
            # Later keys outdo the first ones by more than float32 can hold.
            level = _highest(p, tile, queries, buffer)
            total, mean = _sums(p, tile, queries, level, buffer)
        _put(out, heads, columns, mean / total[:, None])
        place = lse[heads, :, columns]
        place.copy_((level + total.log()).view_as(place))
    return (
        out.view(q.shape).to(q.dtype),
        lse.view(q.shape[:3]),
    )


def _highest(
    p: _Problem,
    tile: tuple[slice, slice, slice],
    queries: Tensor,
    buffer: Tensor,
    first_block_only: bool = False,
) -> Tensor:
    """The highest score of each query of a tile, (heads, Q).

    Exponentials are taken of scores less this level. Any level near the
    highest score will do, so that of the first block of keys is tried first.
    """
    pairs, heads, columns = tile
    level = queries.new_full((len(queries), queries.shape[2]), -math.inf)
    queries = _with_level(queries, torch.zeros_like(level))
    for keys in _slices(p.keys, p.plan.keys):
        block = p.key_block(keys, pairs, columns)
        for rows, part in p.row_blocks(columns):
            scores = p.scores(
                block,
                block.mixed_rows(rows),
                p.k[heads, keys],
                queries[:, :, part],
                buffer,
            )
            level[:, part] = torch.maximum(level[:, part], scores.amax(0))
        if first_block_only:
            break
    return level


def _sums(
    p: _Problem,
    tile: tuple[slice, slice, slice],
    queries: Tensor,
    level: Tensor,
    buffer: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sums over the keys, of exponentials and of values weighted with them.

    Returns:
        Tensors (heads, Q) and (heads, d, Q).
    """
    pairs, heads, columns = tile
    total, mean = torch.zeros_like(level), torch.zeros_like(queries)
    queries = _with_level(queries, level)
    for keys in _slices(p.keys, p.plan.keys):
        block = p.key_block(keys, pairs, columns)
        values = p.v[heads, keys].mT.contiguous()
        for rows, part in p.row_blocks(columns):
            weights = p.scores(
                block,
                block.mixed_rows(rows),
                p.k[heads, keys],
                queries[:, :, part],
                buffer,
            ).exp_()
            total[:, part] += weights.sum(0)
            _add(mean[:, :, part], values, weights.transpose(0, 1))
    return total, mean


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
    dtype = p.q.dtype
    delta = (grad.to(dtype) * out.to(dtype)).sum(-1)
    delta = delta.reshape(-1, p.height, p.width)
    lse = lse.view_as(delta)
    grad = p.as_maps(grad.to(dtype))
    q_grad, k_grad, v_grad = (torch.zeros_like(t) for t in (p.q, p.v, p.v))
    slices_grad = torch.zeros_like(p.slices.values)
    points_grad = torch.zeros_like(p.points_yx)
    buffers = p.q.new_empty(2, p.block_size)
    for pairs, heads, columns in p.tiles():
        queries = _tile(p.q, heads, columns)
        grads = _tile(grad, heads, columns)
        queries_grad = torch.zeros_like(queries)
        tile_delta = delta[heads, :, columns].flatten(1)
        leveled = _with_level(queries, lse[heads, :, columns].flatten(1))
        for keys in _slices(p.keys, p.plan.keys):
            block = p.key_block(keys, pairs, columns)
            block.start_gradients()
            k_block, v_block = p.k[heads, keys], p.v[heads, keys]
            for rows, part in p.row_blocks(columns):
                mixed = block.mixed_rows(rows)
                weights = p.scores(
                    block, mixed, k_block, leveled[:, :, part], buffers[0]
                ).exp_()
                by_head = weights.transpose(0, 1)
                _add(v_grad[heads, keys], by_head, grads[:, :, part].mT)
                d = buffers[1, : weights.numel()].view_as(weights)
                torch.bmm(v_block, grads[:, :, part], out=d.transpose(0, 1))
                d.sub_(tile_delta[:, part]).mul_(weights)
                by_head = d.transpose(0, 1)
                _add(k_grad[heads, keys], by_head, queries[:, :, part].mT)
                _add(
                    queries_grad[:, :, part], k_block[..., :-1].mT, by_head
                )
                block.add_gradients(
                    rows,
                    mixed,
                    d.view(len(mixed), mixed.shape[1], -1),
                    slices_grad,
                )
            points_grad[keys, pairs] += block.points_grad()
        _put(q_grad, heads, columns, queries_grad)
    table_grad = join_slices(slices_grad, p.slices, bias.table)
    points_grad = points_grad.transpose(0, 1).reshape(bias.points_yx.shape)
    return (
        q_grad.view(q.shape).to(q.dtype),
        (k_grad * scale).view(k.shape).to(k.dtype),
        v_grad.view(v.shape).to(v.dtype),
        table_grad.to(bias.table.dtype).contiguous(),
        points_grad.to(bias.points_yx.dtype),
    )


def _add(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, for batches of matrices."""
    torch.baddbmm(total, a, b, out=total)


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
