# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernels of deformable attention with a table as position bias.

bias_parts.py reads the bias; table_gradient_kernel.py computes the gradient of
the table. In the forward pass and in the gradient of the queries, a program
has one block of queries and loops over all keys, and handles the last keys
separately if they do not fill a block. In the gradient of the keys, a program
has one block of keys and loops over queries.

In the lists of arguments, q_b, q_h, q_n, q_d are the strides of q over
batch, head, query and channel; the same for k, v, out (o) and its gradient
(g). All other tensors are contiguous.
"""

import triton
import triton.language as tl

from .bias_parts import (
    load_four,
    load_points,
    place_between,
    read_bias,
    units_of,
)
from .kernel_parts import (
    LN_2,
    load_rows,
    multiply,
    score_gradient,
    softmax_end,
    softmax_step,
    start_softmax,
    store_rows,
)

# These sizes vary between batches; no kernel is compiled for single values.
CHANGING = ['heads', 'group_heads', 'queries', 'keys', 'width']


@triton.jit
def locate_queries(
    query_y, query_x, rows, inside, width, table_h, table_w, cells_y, cells_x
):
    """Computes the places of queries, and the factors for the points.

    Queries are numbered along the rows of their map. See ``units_of``.
    """
    factor_y, shift_y = units_of(table_h, cells_y)
    factor_x, shift_x = units_of(table_w, cells_x)
    y = tl.load(query_y + rows // width, mask=inside, other=0.0)
    x = tl.load(query_x + rows % width, mask=inside, other=0.0)
    return y * factor_y + shift_y, x * factor_x + shift_x, factor_y, factor_x


@triton.jit
def forward_step(
    query, k, v, k_n, k_d, v_n, v_d, points, left, cells, y, x,
    factor_y, factor_x, cells_y, cells_x, scale, acc, top, total, worst,
    DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds a block of keys to the softmax; if RAGGED, only `left` keys."""
    column = tl.arange(0, BLOCK_K)
    valid = column < (left if RAGGED else BLOCK_K)
    key = load_rows(k, column * k_n, k_d, valid, DIM, WIDE)
    value = load_rows(v, column * v_n, v_d, valid, DIM, WIDE)
    point_y, point_x = load_points(points, column, valid)
    worst = tl.maximum(worst, point_y, propagate_nan=tl.PropagateNan.ALL)
    worst = tl.maximum(worst, point_x, propagate_nan=tl.PropagateNan.ALL)
    place_y = place_between(y[:, None], point_y[None, :], factor_y)
    place_x = place_between(x[:, None], point_x[None, :], factor_x)
    bias, _, _ = read_bias(cells, place_y, place_x, cells_y, cells_x)
    scores = multiply(query, tl.trans(key), None, PRECISION) * scale + bias
    if RAGGED:
        scores = tl.where(valid[None, :], scores, float('-inf'))
    acc, top, total = softmax_step(scores, value, acc, top, total, PRECISION)
    return acc, top, total, worst


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    q, k, v, cells, query_y, query_x, points, out, lse,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    o_b, o_h, o_n, o_d,
    scale, heads, group_heads, queries, keys, width,
    table_h, table_w, cells_y, cells_x, head_cells,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes attention of a block of queries; grid (blocks, B * heads).

    A point with NaN makes all sums of its image and group NaN, and with them
    the gradients.
    """
    pair = tl.program_id(1).to(tl.int64)  # image and head
    b, h = pair // heads, pair % heads
    first = tl.program_id(0) * BLOCK_Q
    far = first.to(tl.int64)
    q += b * q_b + h * q_h + far * q_n
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    out += b * o_b + h * o_h + far * o_n
    cells += h * head_cells * 4
    points += pair // group_heads * keys * 2

    block = tl.arange(0, BLOCK_Q)
    inside = first + block < queries
    query = load_rows(q, block * q_n, q_d, inside, DIM, WIDE)
    y, x, factor_y, factor_x = locate_queries(
        query_y, query_x, first + block, inside, width,
        table_h, table_w, cells_y, cells_x,
    )  # fmt: skip

    acc, top, total = start_softmax(BLOCK_Q, WIDE)
    worst = tl.full((BLOCK_K,), float('-inf'), tl.float32)
    full = keys // BLOCK_K * BLOCK_K
    for _ in range(0, full, BLOCK_K):
        acc, top, total, worst = forward_step(
            query, k, v, k_n, k_d, v_n, v_d, points, BLOCK_K, cells, y, x,
            factor_y, factor_x, cells_y, cells_x,
            scale, acc, top, total, worst,
            DIM, WIDE, BLOCK_K, False, PRECISION,
        )  # fmt: skip
        k += BLOCK_K * k_n
        v += BLOCK_K * v_n
        points += 2 * BLOCK_K
    if full < keys:
        acc, top, total, worst = forward_step(
            query, k, v, k_n, k_d, v_n, v_d, points, keys - full, cells, y, x,
            factor_y, factor_x, cells_y, cells_x,
            scale, acc, top, total, worst,
            DIM, WIDE, BLOCK_K, True, PRECISION,
        )  # fmt: skip
    total += tl.sum(tl.where(worst == worst, 0.0, worst), 0)
    acc, log_sum = softmax_end(acc, top, total)
    store_rows(out, block * o_n, o_d, inside, DIM, WIDE, acc)
    tl.store(lse + pair * queries + first + block, log_sum, mask=inside)


@triton.jit
def query_gradient_step(
    query, g, k, v, k_n, k_d, v_n, v_d, points, left, cells, y, x,
    factor_y, factor_x, cells_y, cells_x, scale, log_sum, delta, acc,
    DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK_K: tl.constexpr,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the part of a block of keys; if RAGGED, only `left` keys."""
    column = tl.arange(0, BLOCK_K)
    valid = column < (left if RAGGED else BLOCK_K)
    key = load_rows(k, column * k_n, k_d, valid, DIM, WIDE)
    value = load_rows(v, column * v_n, v_d, valid, DIM, WIDE)
    point_y, point_x = load_points(points, column, valid)
    place_y = place_between(y[:, None], point_y[None, :], factor_y)
    place_x = place_between(x[:, None], point_x[None, :], factor_x)
    bias, _, _ = read_bias(cells, place_y, place_x, cells_y, cells_x)
    _, slope = score_gradient(
        query, key, g, value, bias - log_sum[:, None], delta[:, None], scale,
        PRECISION,
    )  # fmt: skip
    if RAGGED:
        slope = tl.where(valid[None, :], slope, 0.0)
    return multiply(slope.to(key.dtype), key, acc, PRECISION)


@triton.jit(do_not_specialize=[*CHANGING, 'rows'])
def query_gradient_kernel(
    q, k, v, cells, query_y, query_x, points, out, lse, grad, record, dq,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    o_b, o_h, o_n, o_d, g_b, g_h, g_n, g_d, dq_b, dq_h, dq_n, dq_d,
    scale, heads, group_heads, queries, keys, width,
    table_h, table_w, cells_y, cells_x, head_cells, rows,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of a block of queries; grid (blocks, B * heads).

    Also writes the values of each query that the other gradients need: the
    logarithm of its sum, the product of output and gradient, and its place.
    `record` (B * heads, rows, 4) has whole blocks. Rows without a query get an
    infinite sum, so their weights are zero.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    first = tl.program_id(0) * BLOCK_Q
    far = first.to(tl.int64)
    q += b * q_b + h * q_h + far * q_n
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    out += b * o_b + h * o_h + far * o_n
    grad += b * g_b + h * g_h + far * g_n
    dq += b * dq_b + h * dq_h + far * dq_n
    cells += h * head_cells * 4
    points += pair // group_heads * keys * 2

    block = tl.arange(0, BLOCK_Q)
    inside = first + block < queries
    query = load_rows(q, block * q_n, q_d, inside, DIM, WIDE)
    o = load_rows(out, block * o_n, o_d, inside, DIM, WIDE)
    g = load_rows(grad, block * g_n, g_d, inside, DIM, WIDE)
    y, x, factor_y, factor_x = locate_queries(
        query_y, query_x, first + block, inside, width,
        table_h, table_w, cells_y, cells_x,
    )  # fmt: skip
    lse += pair * queries + first
    log_sum = tl.load(lse + block, mask=inside, other=float('inf'))
    delta = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    record += (pair * rows + first + block) * 4
    tl.store(record, log_sum)
    tl.store(record + 1, delta)
    tl.store(record + 2, y)
    tl.store(record + 3, x)

    acc = tl.zeros((BLOCK_Q, WIDE), tl.float32)
    full = keys // BLOCK_K * BLOCK_K
    for _ in range(0, full, BLOCK_K):
        acc = query_gradient_step(
            query, g, k, v, k_n, k_d, v_n, v_d, points, BLOCK_K, cells, y, x,
            factor_y, factor_x, cells_y, cells_x, scale, log_sum, delta, acc,
            DIM, WIDE, BLOCK_K, False, PRECISION,
        )  # fmt: skip
        k += BLOCK_K * k_n
        v += BLOCK_K * v_n
        points += 2 * BLOCK_K
    if full < keys:
        acc = query_gradient_step(
            query, g, k, v, k_n, k_d, v_n, v_d, points, keys - full,
            cells, y, x,
            factor_y, factor_x, cells_y, cells_x, scale, log_sum, delta, acc,
            DIM, WIDE, BLOCK_K, True, PRECISION,
        )  # fmt: skip
    acc *= scale * LN_2
    store_rows(dq, block * dq_n, dq_d, inside, DIM, WIDE, acc)


@triton.jit(do_not_specialize=[*CHANGING, 'rows', 'slice_queries'])
def key_gradient_kernel(
    q, k, v, cells, points, grad, record, dk, dv, dpoints,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    g_b, g_h, g_n, g_d,
    scale, heads, group_heads, queries, keys,
    table_h, table_w, cells_y, cells_x, head_cells, rows, slice_queries,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    NEEDS_POINTS: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of a block of keys from a slice of the queries.

    Grid (blocks, B * heads, slices): few keys give few blocks, so whole blocks
    of queries are divided among programs too. `dk`,
    `dv` (slices, B, heads, keys, DIM) and `dpoints` (slices, B, heads, keys,
    2) are summed by the caller.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    cells += h * head_cells * 4
    points += pair // group_heads * keys * 2
    first = tl.program_id(0) * BLOCK_K
    block = tl.arange(0, BLOCK_K)
    inside = first + block < keys
    k += b * k_b + h * k_h + first.to(tl.int64) * k_n
    v += b * v_b + h * v_h + first.to(tl.int64) * v_n
    key = load_rows(k, block * k_n, k_d, inside, DIM, WIDE)
    value = load_rows(v, block * v_n, v_d, inside, DIM, WIDE)
    point_y, point_x = load_points(points, first + block, inside)
    factor_y, _ = units_of(table_h, cells_y)
    factor_x, _ = units_of(table_w, cells_x)

    begin = tl.program_id(2) * slice_queries
    end = tl.minimum(begin + slice_queries, queries)
    far = begin.to(tl.int64)
    q += b * q_b + h * q_h + far * q_n
    grad += b * g_b + h * g_h + far * g_n
    record += (pair * rows + begin) * 4
    key_acc = tl.zeros((BLOCK_K, WIDE), tl.float32)
    value_acc = tl.zeros((BLOCK_K, WIDE), tl.float32)
    y_acc = tl.zeros((BLOCK_K,), tl.float32)
    x_acc = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(begin, end, BLOCK_Q):
        row = tl.arange(0, BLOCK_Q)
        valid = start + row < end
        query = load_rows(q, row * q_n, q_d, valid, DIM, WIDE)
        g = load_rows(grad, row * g_n, g_d, valid, DIM, WIDE)
        log_sum, delta, y, x = load_four(record + row * 4)
        q += BLOCK_Q * q_n
        grad += BLOCK_Q * g_n
        record += BLOCK_Q * 4
        place_y = place_between(y[None, :], point_y[:, None], factor_y)
        place_x = place_between(x[None, :], point_x[:, None], factor_x)
        bias, slope_y, slope_x = read_bias(
            cells, place_y, place_x, cells_y, cells_x
        )
        weights, slope = score_gradient(
            key, query, value, g, bias - log_sum[None, :], delta[None, :],
            scale, PRECISION,
        )  # fmt: skip
        value_acc = multiply(weights.to(g.dtype), g, value_acc, PRECISION)
        key_acc = multiply(slope.to(query.dtype), query, key_acc, PRECISION)
        if NEEDS_POINTS:
            y_acc += tl.sum(slope * slope_y, 1)
            x_acc += tl.sum(slope * slope_x, 1)
    written = tl.program_id(2) * tl.num_programs(1) + pair
    dk += (written * keys + first) * DIM
    dv += (written * keys + first) * DIM
    key_acc *= scale * LN_2
    store_rows(dk, block * DIM, 1, inside, DIM, WIDE, key_acc)
    store_rows(dv, block * DIM, 1, inside, DIM, WIDE, value_acc)
    if NEEDS_POINTS:
        dpoints += (written * keys + first) * 2
        y_acc *= (table_h - 1) * (-0.25 * LN_2)
        x_acc *= (table_w - 1) * (-0.25 * LN_2)
        tl.store(dpoints + 2 * block, y_acc, mask=inside)
        tl.store(dpoints + 2 * block + 1, x_acc, mask=inside)
