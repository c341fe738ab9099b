# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernels of neighbourhood attention.

A program has a tile of queries. The union of their neighbourhoods is a
rectangle of keys. The program loops over this rectangle in tiles and masks
the pairs outside each neighbourhood. In the gradient of the keys, a program
has a tile of keys and loops over the rectangle of queries whose
neighbourhoods contain any of them.

In the lists of arguments, q_b, q_y, q_x, q_h, q_d are the strides of q over
batch, row, column, head and channel; the same for k, v, out (o), its
gradient (g) and the gradients of q, k and v. All other tensors are contiguous.
"""

import triton
import triton.language as tl

from .kernel_parts import (
    LN_2,
    load_rows,
    multiply,
    multiply_finely,
    score_gradient,
    softmax_end,
    softmax_step,
    start_softmax,
    store_rows,
)

# These sizes vary between batches; no kernel is compiled for single values.
CHANGING = ['heads', 'height', 'width']


@triton.jit
def first_key(query, length, K: tl.constexpr):
    """Returns the first of a query's K keys along one axis."""
    return tl.minimum(tl.maximum(query - K // 2, 0), length - K)


@triton.jit
def first_query(key, K: tl.constexpr):
    """Returns the first query of a key; query 0 has the first K keys."""
    return tl.where(key < K, 0, key - K // 2)


@triton.jit
def last_query(key, length, K: tl.constexpr):
    """Returns the last query whose neighbourhood contains a key."""
    return tl.where(key >= length - K, length - 1, key + K // 2)


@triton.jit
def tile_of(tile, height, width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Returns first and last row, first and last column of a tile."""
    tiles_x = tl.cdiv(width, TILE_X)
    y = tile // tiles_x * TILE_Y
    x = tile % tiles_x * TILE_X
    last_y = tl.minimum(y + TILE_Y, height) - 1
    last_x = tl.minimum(x + TILE_X, width) - 1
    return y, last_y, x, last_x


@triton.jit
def offset_of(y, x, stride_y, stride_x):
    """Returns the offset of a position of the map, in elements (64 bits)."""
    return y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x


@triton.jit
def bias_of(
    table, query_y, query_x, key_y, key_x, height, width, K: tl.constexpr
):
    """Returns the bias of pairs, -inf outside the query's neighbourhood.

    Args:
        table: (2K - 1, 2K - 1) of one head, in units of log 2.
        query_y: Rows of queries; the four coordinates broadcast to a block.
        query_x: Columns of queries.
        key_y: Rows of keys.
        key_x: Columns of keys.
        height: Rows of the map.
        width: Columns of the map.
        K: Side of the neighbourhood.
    """
    # As unsigned integers, negative numbers exceed every bound.
    row = (key_y - first_key(query_y, height, K)).to(tl.uint32)
    column = (key_x - first_key(query_x, width, K)).to(tl.uint32)
    seen = (row < K) & (column < K)
    # One part is computed once per query, the other once per key.
    query = (K - 1 - query_y) * (2 * K - 1) + K - 1 - query_x
    place = query + (key_y * (2 * K - 1) + key_x)
    return tl.load(table + place, mask=seen, other=float('-inf'))


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    q, k, v, table, out, lse,
    q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d,
    v_b, v_y, v_x, v_h, v_d, o_b, o_y, o_x, o_h, o_d,
    scale, heads, height, width, K: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    STEP_Y: tl.constexpr, STEP_X: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes attention of a tile of queries; grid (tiles, B * heads)."""
    pair = tl.program_id(1).to(tl.int64)  # image and head
    b, h = pair // heads, pair % heads
    table += h * (2 * K - 1) * (2 * K - 1)

    y0, y1, x0, x1 = tile_of(tl.program_id(0), height, width, TILE_Y, TILE_X)
    tile = tl.arange(0, TILE_Y * TILE_X)
    row, column = tile // TILE_X, tile % TILE_X
    y, x = y0 + row, x0 + column
    inside = (y <= y1) & (x <= x1)
    q += b * q_b + h * q_h + offset_of(y0, x0, q_y, q_x)
    query = load_rows(q, row * q_y + column * q_x, q_d, inside, DIM, WIDE)

    # The keys are in rows [ky, ky_end) and columns [kx, kx_end).
    ky, kx = first_key(y0, height, K), first_key(x0, width, K)
    ky_end = first_key(y1, height, K) + K
    kx_end = first_key(x1, width, K) + K
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    step = tl.arange(0, STEP_Y * STEP_X)
    i, j = step // STEP_X, step % STEP_X
    acc, top, total = start_softmax(TILE_Y * TILE_X, WIDE)
    for left in range(kx, kx_end, STEP_X):
        for up in range(ky, ky_end, STEP_Y):
            valid = (up + i < ky_end) & (left + j < kx_end)
            near = k + offset_of(up + 0 * ky, left + 0 * kx, k_y, k_x)
            key = load_rows(near, i * k_y + j * k_x, k_d, valid, DIM, WIDE)
            near = v + offset_of(up + 0 * ky, left + 0 * kx, v_y, v_x)
            value = load_rows(near, i * v_y + j * v_x, v_d, valid, DIM, WIDE)
            bias = bias_of(
                table, y[:, None], x[:, None],
                (up + i)[None, :], (left + j)[None, :], height, width, K,
            )  # fmt: skip
            scores = multiply(query, tl.trans(key), None, PRECISION)
            acc, top, total = softmax_step(
                scores * scale + bias, value, acc, top, total, PRECISION
            )
    acc, log_sum = softmax_end(acc, top, total)
    out += b * o_b + h * o_h + offset_of(y0, x0, o_y, o_x)
    store_rows(out, row * o_y + column * o_x, o_d, inside, DIM, WIDE, acc)
    lse += pair * height * width
    tl.store(lse + y * width + x, log_sum, mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def query_gradient_kernel(
    q, k, v, table, out, lse, grad, delta, dq,
    q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d,
    v_b, v_y, v_x, v_h, v_d, o_b, o_y, o_x, o_h, o_d,
    g_b, g_y, g_x, g_h, g_d, dq_b, dq_y, dq_x, dq_h, dq_d,
    scale, heads, height, width, K: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    STEP_Y: tl.constexpr, STEP_X: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of a tile of queries; grid (tiles, B * heads).

    Also writes `delta` for the gradient of the keys.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    table += h * (2 * K - 1) * (2 * K - 1)

    y0, y1, x0, x1 = tile_of(tl.program_id(0), height, width, TILE_Y, TILE_X)
    tile = tl.arange(0, TILE_Y * TILE_X)
    row, column = tile // TILE_X, tile % TILE_X
    y, x = y0 + row, x0 + column
    inside = (y <= y1) & (x <= x1)
    q += b * q_b + h * q_h + offset_of(y0, x0, q_y, q_x)
    out += b * o_b + h * o_h + offset_of(y0, x0, o_y, o_x)
    grad += b * g_b + h * g_h + offset_of(y0, x0, g_y, g_x)
    query = load_rows(q, row * q_y + column * q_x, q_d, inside, DIM, WIDE)
    o = load_rows(out, row * o_y + column * o_x, o_d, inside, DIM, WIDE)
    g = load_rows(grad, row * g_y + column * g_x, g_d, inside, DIM, WIDE)
    lse += pair * height * width
    delta += pair * height * width
    log_sum = tl.load(lse + y * width + x, mask=inside, other=float('inf'))
    dot_og = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(delta + y * width + x, dot_og, mask=inside)

    ky, kx = first_key(y0, height, K), first_key(x0, width, K)
    ky_end = first_key(y1, height, K) + K
    kx_end = first_key(x1, width, K) + K
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    step = tl.arange(0, STEP_Y * STEP_X)
    i, j = step // STEP_X, step % STEP_X
    acc = tl.zeros((TILE_Y * TILE_X, WIDE), tl.float32)
    for left in range(kx, kx_end, STEP_X):
        for up in range(ky, ky_end, STEP_Y):
            valid = (up + i < ky_end) & (left + j < kx_end)
            near = k + offset_of(up + 0 * ky, left + 0 * kx, k_y, k_x)
            key = load_rows(near, i * k_y + j * k_x, k_d, valid, DIM, WIDE)
            near = v + offset_of(up + 0 * ky, left + 0 * kx, v_y, v_x)
            value = load_rows(near, i * v_y + j * v_x, v_d, valid, DIM, WIDE)
            bias = bias_of(
                table, y[:, None], x[:, None],
                (up + i)[None, :], (left + j)[None, :], height, width, K,
            )  # fmt: skip
            _, slope = score_gradient(
                query, key, g, value, bias - log_sum[:, None],
                dot_og[:, None], scale, PRECISION,
            )  # fmt: skip
            acc = multiply(slope.to(key.dtype), key, acc, PRECISION)
    dq += b * dq_b + h * dq_h + offset_of(y0, x0, dq_y, dq_x)
    offsets = row * dq_y + column * dq_x
    acc *= scale * LN_2
    store_rows(dq, offsets, dq_d, inside, DIM, WIDE, acc)


@triton.jit
def equals(place, SIDE: tl.constexpr, dtype: tl.constexpr):
    """Returns (n, SIDE) with 1 in column `place` of each row, else 0."""
    side = tl.arange(0, SIDE)
    return (place[:, None] == side[None, :]).to(tl.float32).to(dtype)


@triton.jit(do_not_specialize=CHANGING)
def key_gradient_kernel(
    q, k, v, table, lse, grad, delta, dk, dv, dtable,
    q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d,
    v_b, v_y, v_x, v_h, v_d, g_b, g_y, g_x, g_h, g_d,
    dk_b, dk_y, dk_x, dk_h, dk_d, dv_b, dv_y, dv_x, dv_h, dv_d,
    scale, heads, height, width, K: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    STEP_Y: tl.constexpr, STEP_X: tl.constexpr, PRECISION: tl.constexpr,
    SIDE: tl.constexpr, NEEDS_TABLE: tl.constexpr,
):  # fmt: skip
    """Computes gradients of a tile of keys, values; grid (tiles, B * heads).

    The tile's part of the gradient of the table is the sum over all pairs with
    equal displacement. Two products with matrices of ones and zeros compute
    it: first over pairs of columns, then over pairs of rows. The caller sums
    `dtable` (B, heads, tiles, 2K - 1, 2K - 1), so the result is deterministic.
    SIDE is a power of two of at least 2K - 1.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    table += h * (2 * K - 1) * (2 * K - 1)

    y0, y1, x0, x1 = tile_of(tl.program_id(0), height, width, TILE_Y, TILE_X)
    tile = tl.arange(0, TILE_Y * TILE_X)
    row, column = tile // TILE_X, tile % TILE_X
    y, x = y0 + row, x0 + column
    inside = (y <= y1) & (x <= x1)
    k += b * k_b + h * k_h + offset_of(y0, x0, k_y, k_x)
    v += b * v_b + h * v_h + offset_of(y0, x0, v_y, v_x)
    key = load_rows(k, row * k_y + column * k_x, k_d, inside, DIM, WIDE)
    value = load_rows(v, row * v_y + column * v_x, v_d, inside, DIM, WIDE)
    # Keys outside the map belong to no query.
    y, x = tl.where(inside, y, height), tl.where(inside, x, width)

    qy, qx = first_query(y0, K), first_query(x0, K)
    qy_end = last_query(y1, height, K) + 1
    qx_end = last_query(x1, width, K) + 1
    q += b * q_b + h * q_h
    grad += b * g_b + h * g_h
    lse += pair * height * width
    delta += pair * height * width
    step = tl.arange(0, STEP_Y * STEP_X)
    i, j = step // STEP_X, step % STEP_X
    key_acc = tl.zeros((TILE_Y * TILE_X, WIDE), tl.float32)
    value_acc = tl.zeros((TILE_Y * TILE_X, WIDE), tl.float32)
    table_acc = tl.zeros((SIDE, SIDE), tl.float32)
    for left in range(qx, qx_end, STEP_X):
        columns = tl.arange(0, TILE_X * STEP_X)  # pairs of columns
        move_x = x0 + columns // STEP_X - (left + columns % STEP_X) + K - 1
        column_of = equals(move_x, SIDE, q.dtype.element_ty)
        for up in range(qy, qy_end, STEP_Y):
            valid = (up + i < qy_end) & (left + j < qx_end)
            near = q + offset_of(up + 0 * qy, left + 0 * qx, q_y, q_x)
            query = load_rows(near, i * q_y + j * q_x, q_d, valid, DIM, WIDE)
            near = grad + offset_of(up + 0 * qy, left + 0 * qx, g_y, g_x)
            g = load_rows(near, i * g_y + j * g_x, g_d, valid, DIM, WIDE)
            number = (up + i) * width + left + j
            log_sum = tl.load(lse + number, mask=valid, other=float('inf'))
            dot_og = tl.load(delta + number, mask=valid, other=0.0)
            bias = bias_of(
                table, (up + i)[None, :], (left + j)[None, :],
                y[:, None], x[:, None], height, width, K,
            )  # fmt: skip
            weights, slope = score_gradient(
                key, query, value, g, bias - log_sum[None, :],
                dot_og[None, :], scale, PRECISION,
            )  # fmt: skip
            value_acc = multiply(weights.to(g.dtype), g, value_acc, PRECISION)
            key_acc = multiply(
                slope.to(query.dtype), query, key_acc, PRECISION
            )
            if NEEDS_TABLE:
                slope = tl.reshape(slope, (TILE_Y, TILE_X, STEP_Y, STEP_X))
                slope = tl.permute(slope, (0, 2, 1, 3))
                slope = tl.reshape(slope, (TILE_Y * STEP_Y, TILE_X * STEP_X))
                sums = tl.zeros((TILE_Y * STEP_Y, SIDE), tl.float32)
                sums = multiply_finely(
                    slope, column_of, sums, query.dtype, PRECISION
                )
                rows = tl.arange(0, TILE_Y * STEP_Y)
                move_y = y0 + rows // STEP_Y - (up + rows % STEP_Y) + K - 1
                row_of = equals(move_y, SIDE, query.dtype)
                table_acc = multiply_finely(
                    tl.trans(sums), row_of, table_acc, query.dtype, PRECISION
                )
    dk += b * dk_b + h * dk_h + offset_of(y0, x0, dk_y, dk_x)
    dv += b * dv_b + h * dv_h + offset_of(y0, x0, dv_y, dv_x)
    offsets = row * dk_y + column * dk_x
    key_acc *= scale * LN_2
    store_rows(dk, offsets, dk_d, inside, DIM, WIDE, key_acc)
    offsets = row * dv_y + column * dv_x
    store_rows(dv, offsets, dv_d, inside, DIM, WIDE, value_acc)
    if NEEDS_TABLE:
        written = pair * tl.num_programs(0) + tl.program_id(0)
        dtable += written * (2 * K - 1) * (2 * K - 1)
        side = tl.arange(0, SIDE)
        tl.store(
            dtable + side[:, None] * (2 * K - 1) + side[None, :],
            tl.trans(table_acc),
            mask=(side[:, None] < 2 * K - 1) & (side[None, :] < 2 * K - 1),
        )
