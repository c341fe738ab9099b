# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention with a table bias, as matrix products in the cache.

The queries are cut into tiles, and the keys of a tile into blocks. Scores
exist for one block at a time, with the axis of keys first, as the module
``bias`` computes their bias. Sums over the keys continue from block to block
(Milakov and
Gimelshein, 2018). The backward pass computes the weights of a block again
from the row max and the row sum of each query, as flash attention does, so
training stores nothing of the size queries x keys. Both passes compute the
same exponentials. A log-sum-exp instead of row max and row sum would be
rounded, and for scores as large as 1e8 the error would be a power of two.

All scores are in units of log 2, because PyTorch's ``exp2`` takes a third of
the time of its ``exp`` on a CPU, at the same precision. docs/fast_paths.md
explains the whole.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..custom_op import (
    HAS_OPERATORS,
    is_compiling,
    is_exporting,
    operator,
    register_backward,
)
from ..position_bias import PositionBias, TableBias
from ..precision import must_repeat_exactly
from . import threads
from .bias import join_slices, steps_between_rows
from .tiling import LOG_2, Problem, Tile, cut, put, working_dtype

# Keys among which the row max is looked for first.
FIRST_KEYS = 16
# Sums that the backward pass may divide gradients by.
LARGEST_SUM = 2.0**60
# With fewer pairs, the work that does not grow with them is larger. In
# training the limit is lower, because PyTorch would store the weights of all
# pairs.
LEAST_PAIRS = {False: 2**20, True: 2**18}


def _less_row_max(q: Tensor, row_max: Tensor) -> Tensor:
    """Queries (heads, d, Q) and a row that subtracts the row max."""
    return torch.cat([q, -row_max[:, None]], dim=1)


def _add(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to `sums`, for batches of matrices."""
    torch.baddbmm(sums, a, b, out=sums)


@operator('separable_attention')
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    points_yx: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, heads, H W, d), row max and row sum (B, heads, H W, 2)."""
    bias = TableBias(table, query_y, query_x, points_yx)
    p = Problem(q, k, v, bias, scale)
    out = torch.empty_like(p.q)
    row_stats = out.new_empty(*out.shape[:3], 2)

    def attend(tiles: Sequence[Tile]) -> None:
        buffer = out.new_empty(p.block_size)
        for tile in tiles:
            queries = cut(p.q, tile)
            row_max = _row_max(p, tile, queries, buffer, FIRST_KEYS)
            sums = _sums(p, tile, queries, row_max, buffer)
            if not (
                sums[:, -1].amax() < LARGEST_SUM and sums.isfinite().all()
            ):
                # Scores of later keys are much higher.
                row_max = _row_max(p, tile, queries, buffer)
                sums = _sums(p, tile, queries, row_max, buffer)
            mean, row_sum = sums[:, :-1], sums[:, -1:]
            put(out, tile, mean / row_sum)
            stats = torch.cat([row_max[:, None], row_sum], dim=1)
            put(row_stats, tile, stats)

    threads.run(attend, p.tiles())
    return out.view(q.shape).to(q.dtype), row_stats.view(*q.shape[:3], 2)


def _row_max(
    p: Problem,
    tile: Tile,
    queries: Tensor,
    buffer: Tensor,
    most: int | None = None,
) -> Tensor:
    """The highest score of each query of a tile, (heads, Q).

    The row max is subtracted before the exponential. A number near it is
    sufficient, so the maximum over a few keys is tried first.
    """
    row_max = queries.new_full((len(queries), queries.shape[2]), -math.inf)
    queries = _less_row_max(queries, torch.zeros_like(row_max))
    for keys, block in p.key_blocks(tile, most):
        for rows, part in p.row_blocks(tile):
            scores = p.scores(
                block,
                block.mixed_rows(rows),
                p.k[tile.heads, keys],
                queries[:, :, part],
                buffer,
            )
            row_max[:, part] = torch.maximum(row_max[:, part], scores.amax(0))
    return row_max


def _sums(
    p: Problem, tile: Tile, queries: Tensor, row_max: Tensor, buffer: Tensor
) -> Tensor:
    """Values and ones, weighted by exponentials and summed over the keys.

    Returns:
        Tensor (heads, d + 1, Q).
    """
    queries = _less_row_max(queries, row_max)
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
    """The gradients that one thread sums over its tiles."""

    def __init__(self, p: Problem) -> None:
        self.k = p.q.new_zeros(*p.v.shape[:2], p.dim)
        self.v = torch.zeros_like(self.k)
        slices, width = p.slices.values.shape
        self.slices = p.q.new_zeros(slices, 2, width)
        self.points_yx = torch.zeros_like(p.points_yx)

    def __iadd__(self, other: '_Gradients') -> '_Gradients':
        self.k += other.k
        self.v += other.v
        self.slices += other.slices
        self.points_yx += other.points_yx
        return self


@operator('separable_attention_backward')
def _attention_backward(
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
    row_stats: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, the table and the points."""
    bias = TableBias(table, query_y, query_x, points_yx)
    p = Problem(q, k, v, bias, scale)
    row_max, row_sum = (p.as_maps(x) for x in row_stats.split(1, dim=-1))
    # Weights are the exponentials over the row sum; the gradient, which is
    # all that multiplies them, is divided by it instead.
    grad = p.as_maps(grad.to(p.q.dtype)) / row_sum
    delta = (grad * p.as_maps(out.to(grad.dtype))).sum(-1, keepdim=True)
    q_grad = torch.empty_like(p.q)
    steps = steps_between_rows(p.slices)

    def differentiate(tiles: Sequence[Tile]) -> _Gradients:
        gradients = _Gradients(p)
        buffers = grad.new_empty(2, p.block_size)
        for tile in tiles:
            queries, grads = cut(p.q, tile), cut(grad, tile)
            shifted = _less_row_max(queries, cut(row_max, tile)[:, 0])
            tile_delta = cut(delta, tile)[:, 0]
            queries_grad = torch.zeros_like(queries)
            for keys, block in p.key_blocks(tile):
                at = tile.heads, keys
                block.start_gradients()
                for rows, part in p.row_blocks(tile):
                    mixed = block.mixed_rows(rows)
                    weights = p.scores(
                        block, mixed, p.k[at], shifted[:, :, part], buffers[0]
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
                        steps,
                        gradients.slices,
                    )
                gradients.points_yx[keys, tile.pairs] += block.points_grad()
            put(q_grad, tile, queries_grad)
        return gradients

    sums, *others = threads.run(differentiate, p.tiles())
    for gradients in others:
        sums += gradients
    points_grad = sums.points_yx.transpose(0, 1).reshape(bias.points_yx.shape)
    # Keys, and slices of the table, are divided by log 2 already.
    return (
        (q_grad * LOG_2).view(q.shape).to(q.dtype),
        (sums.k * scale).view(k.shape).to(k.dtype),
        sums.v.view(v.shape).to(v.dtype),
        join_slices(sums.slices, p.slices, bias.table).to(bias.table.dtype),
        (points_grad * LOG_2).to(bias.points_yx.dtype),
    )


def _fake(q, k, v, table, query_y, query_x, points_yx, scale):
    dtype = working_dtype(q, points_yx)
    return q.new_empty(q.shape), q.new_empty(*q.shape[:3], 2, dtype=dtype)


def _fake_backward(grad, q, k, v, table, query_y, query_x, points_yx, *_):
    return tuple(t.new_empty(t.shape) for t in (q, k, v, table, points_yx))


def _backward_pass(backward, ctx, grad, _):
    *tensors, out, row_stats = ctx.saved_tensors
    q, k, v, table, points_yx = backward(
        grad, *tensors, *ctx.settings, out, row_stats
    )
    return q, k, v, table, None, None, points_yx, None


register_backward(
    _attention,
    _attention_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    backward=_backward_pass,
)


def not_supported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Returns why this backend cannot run, or None."""
    if not HAS_OPERATORS:
        return f'torch 2.4 or newer is needed; this is {torch.__version__}.'
    if not isinstance(bias, TableBias):
        return f'it supports bias tables only; got {type(bias).__name__}.'
    if dropout:
        return f'it does not support dropout; got dropout={dropout}.'
    if is_exporting():
        return 'an exported graph needs plain operations; set backend=None.'
    return None


def slower(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Returns why reading the table pair by pair is faster, or None."""
    if must_repeat_exactly(q):
        return None
    if q.device.type != 'cpu':
        return f'it runs on a CPU only; got {q.device}.'
    pairs = q.shape[2] * k.shape[2]
    least = LEAST_PAIRS[torch.is_grad_enabled()]
    if pairs < least:
        # A number that is shown is a constant to a compiler.
        got = 'fewer' if is_compiling() else pairs
        return f'it is slower below {least} query-key pairs; got {got}.'
    return None


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: TableBias,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """See ``mmdat.ops.deformable_attention``."""
    return _attention(q, k, v, *bias, scale)[0]
