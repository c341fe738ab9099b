# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernels of neighbourhood attention.

A program takes a tile of queries against all keys that any of them sees, a
rectangle, and masks the pairs that do not see each other. The gradient of the
keys takes a tile of keys against the rectangle of queries that see any.

In the lists of arguments, q_b, q_y, q_x, q_h, q_d are the strides of q over
batch, row, column, head and channel; the same for k, v, out (o), its
gradient (g) and the gradients of q, k and v. What else is read or written is
contiguous.
"""

import triton
import triton.language as tl

from .common import (
    LOG2_E,
    load_rows,
    multiply,
    score_gradient,
    softmax_end,
    softmax_step,
    store_rows,
)


@triton.jit
def first_key(query, length, K: tl.constexpr):
    """First of the K keys that a query sees along one axis."""
    return tl.minimum(tl.maximum(query - K // 2, 0), length - K)


@triton.jit
def first_query(key, K: tl.constexpr):
    """First query that sees a key: query 0 sees all of the first K."""
    return tl.where(key < K, 0, key - K // 2)


@triton.jit
def last_query(key, length, K: tl.constexpr):
    """Last query that sees a key."""
    return tl.where(key >= length - K, length - 1, key + K // 2)


@triton.jit
def tile_of(tile, height, width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """First and last row, first and last column of a tile."""
    tiles_x = tl.cdiv(width, TILE_X)
    y = tile // tiles_x * TILE_Y
    x = tile % tiles_x * TILE_X
    last_y = tl.minimum(y + TILE_Y, height) - 1
    last_x = tl.minimum(x + TILE_X, width) - 1
    return y, last_y, x, last_x


@triton.jit
def offset_of(y, x, stride_y, stride_x):
    """Elements up to a cell of the map, of any size."""
    return y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x


@triton.jit
def bias_and_mask(
    table, query_y, query_x, key_y, key_x, valid, height, width,
    K: tl.constexpr,
):  # fmt: skip
    """Bias of pairs, and whether the query sees the key.

    Args:
        table: (2K - 1, 2K - 1) of one head.
        query_y: Rows; this and the next four broadcast to a block.
        query_x: Columns.
        key_y: Rows.
        key_x: Columns.
        valid: Whether both exist.
        height: Rows of the map.
        width: Columns of the map.
        K: Side of the neighbourhood.
    """
    row = key_y - first_key(query_y, height, K)
    column = key_x - first_key(query_x, width, K)
    seen = (row >= 0) & (row < K) & (column >= 0) & (column < K) & valid
    move_y, move_x = key_y - query_y + K - 1, key_x - query_x + K - 1
    bias = tl.load(table + move_y * (2 * K - 1) + move_x, mask=seen, other=0.0)
    return bias, seen


@triton.jit
def forward_kernel(
    q, k, v, table, out, lse,
    q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d,
    v_b, v_y, v_x, v_h, v_d, o_b, o_y, o_x, o_h, o_d,
    scale, heads, height, width, K: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of queries on their keys; grid (tiles, B * heads)."""
    pair = tl.program_id(1).to(tl.int64)  # of image and head
    b, h = pair // heads, pair % heads
    table += h * (2 * K - 1) * (2 * K - 1)

    y0, y1, x0, x1 = tile_of(tl.program_id(0), height, width, TILE_Y, TILE_X)
    tile = tl.arange(0, TILE_Y * TILE_X)
    row, column = tile // TILE_X, tile % TILE_X
    y, x = y0 + row, x0 + column
    inside = (y <= y1) & (x <= x1)
    q += b * q_b + h * q_h + offset_of(y0, x0, q_y, q_x)
    query = load_rows(q, row * q_y + column * q_x, q_d, inside, DIM, WIDE)

    # Keys are counted in reading order in the rectangle from (ky, kx).
    ky, kx = first_key(y0, height, K), first_key(x0, width, K)
    columns = first_key(x1, width, K) + K - kx
    keys = (first_key(y1, height, K) + K - ky) * columns
    k += b * k_b + h * k_h + offset_of(ky, kx, k_y, k_x)
    v += b * v_b + h * v_h + offset_of(ky, kx, v_y, v_x)
    acc = tl.zeros((TILE_Y * TILE_X, WIDE), tl.float32)
    top = tl.full((TILE_Y * TILE_X,), float('-inf'), tl.float32)
    total = tl.zeros((TILE_Y * TILE_X,), tl.float32)
    for start in range(0, keys, BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = index < keys
        i, j = index // columns, index % columns
        key = load_rows(k, i * k_y + j * k_x, k_d, valid, DIM, WIDE)
        value = load_rows(v, i * v_y + j * v_x, v_d, valid, DIM, WIDE)
        bias, seen = bias_and_mask(
            table, y[:, None], x[:, None],
            (ky + i)[None, :], (kx + j)[None, :],
            inside[:, None] & valid[None, :], height, width, K,
        )  # fmt: skip
        scores = multiply(query, tl.trans(key), None, PRECISION)
        scores = (scores * scale + bias) * LOG2_E
        scores = tl.where(seen, scores, float('-inf'))
        acc, top, total = softmax_step(
            scores, value, acc, top, total, PRECISION
        )
    acc, log_sum = softmax_end(acc, top, total)
    out += b * o_b + h * o_h + offset_of(y0, x0, o_y, o_x)
    store_rows(out, row * o_y + column * o_x, o_d, inside, DIM, WIDE, acc)
    lse += pair * height * width
    tl.store(lse + y * width + x, log_sum, mask=inside)


@triton.jit
def query_gradient_kernel(
    q, k, v, table, out, lse, grad, delta, dq,
    q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d,
    v_b, v_y, v_x, v_h, v_d, o_b, o_y, o_x, o_h, o_d,
    g_b, g_y, g_x, g_h, g_d, dq_b, dq_y, dq_x, dq_h, dq_d,
    scale, heads, height, width, K: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of queries; grid (tiles, B * heads).

    Also writes `delta`, which the other gradients need.
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
    log_sum = tl.load(lse + y * width + x, mask=inside, other=0.0)
    dot_og = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(delta + y * width + x, dot_og, mask=inside)

    ky, kx = first_key(y0, height, K), first_key(x0, width, K)
    columns = first_key(x1, width, K) + K - kx
    keys = (first_key(y1, height, K) + K - ky) * columns
    k += b * k_b + h * k_h + offset_of(ky, kx, k_y, k_x)
    v += b * v_b + h * v_h + offset_of(ky, kx, v_y, v_x)
    acc = tl.zeros((TILE_Y * TILE_X, WIDE), tl.float32)
    for start in range(0, keys, BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = index < keys
        i, j = index // columns, index % columns
        key = load_rows(k, i * k_y + j * k_x, k_d, valid, DIM, WIDE)
        value = load_rows(v, i * v_y + j * v_x, v_d, valid, DIM, WIDE)
        bias, seen = bias_and_mask(
            table, y[:, None], x[:, None],
            (ky + i)[None, :], (kx + j)[None, :],
            inside[:, None] & valid[None, :], height, width, K,
        )  # fmt: skip
        _, slope = score_gradient(
            query, key, g, value, bias, seen,
            scale, log_sum[:, None], dot_og[:, None], PRECISION,
        )  # fmt: skip
        acc = multiply(slope.to(key.dtype), key, acc, PRECISION)
    dq += b * dq_b + h * dq_h + offset_of(y0, x0, dq_y, dq_x)
    offsets = row * dq_y + column * dq_x
    store_rows(dq, offsets, dq_d, inside, DIM, WIDE, acc * scale)


@triton.jit
def key_gradient_kernel(
    q, k, v, table, lse, grad, delta, dk, dv,
    q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d,
    v_b, v_y, v_x, v_h, v_d, g_b, g_y, g_x, g_h, g_d,
    dk_b, dk_y, dk_x, dk_h, dk_d, dv_b, dv_y, dv_x, dv_h, dv_d,
    scale, heads, height, width, K: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of keys and values; grid (tiles, B * heads)."""
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

    qy, qx = first_query(y0, K), first_query(x0, K)
    columns = last_query(x1, width, K) + 1 - qx
    queries = (last_query(y1, height, K) + 1 - qy) * columns
    q += b * q_b + h * q_h + offset_of(qy, qx, q_y, q_x)
    grad += b * g_b + h * g_h + offset_of(qy, qx, g_y, g_x)
    scalar = pair * height * width + offset_of(qy, qx, width, 1)
    key_acc = tl.zeros((TILE_Y * TILE_X, WIDE), tl.float32)
    value_acc = tl.zeros((TILE_Y * TILE_X, WIDE), tl.float32)
    for start in range(0, queries, BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = index < queries
        i, j = index // columns, index % columns
        query = load_rows(q, i * q_y + j * q_x, q_d, valid, DIM, WIDE)
        g = load_rows(grad, i * g_y + j * g_x, g_d, valid, DIM, WIDE)
        offsets = scalar + i * width + j
        log_sum = tl.load(lse + offsets, mask=valid, other=0.0)
        dot_og = tl.load(delta + offsets, mask=valid, other=0.0)
        bias, seen = bias_and_mask(
            table, (qy + i)[None, :], (qx + j)[None, :],
            y[:, None], x[:, None],
            inside[:, None] & valid[None, :], height, width, K,
        )  # fmt: skip
        weights, slope = score_gradient(
            key, query, value, g, bias, seen,
            scale, log_sum[None, :], dot_og[None, :], PRECISION,
        )  # fmt: skip
        value_acc = multiply(weights.to(g.dtype), g, value_acc, PRECISION)
        key_acc = multiply(slope.to(query.dtype), query, key_acc, PRECISION)
    dk += b * dk_b + h * dk_h + offset_of(y0, x0, dk_y, dk_x)
    dv += b * dv_b + h * dv_h + offset_of(y0, x0, dv_y, dv_x)
    offsets = row * dk_y + column * dk_x
    store_rows(dk, offsets, dk_d, inside, DIM, WIDE, key_acc * scale)
    offsets = row * dv_y + column * dv_x
    store_rows(dv, offsets, dv_d, inside, DIM, WIDE, value_acc)


@triton.jit
def table_gradient_kernel(
    q, k, v, table, lse, grad, delta, dtable,
    q_b, q_y, q_x, q_h, q_d, k_b, k_y, k_x, k_h, k_d,
    v_b, v_y, v_x, v_h, v_d, g_b, g_y, g_x, g_h, g_d,
    scale, heads, height, width, K: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """What a tile of queries adds to the table; grid (tiles, B * heads).

    One step for each displacement that occurs, without matrix products: each
    query meets the one key that is so far away. `dtable` (B, heads, tiles,
    2K - 1, 2K - 1) begins as zeros and is summed by the caller, so that no
    two programs write to one place and the result never varies.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    side = 2 * K - 1
    table += h * side * side
    dtable += (pair * tl.num_programs(0) + tl.program_id(0)) * side * side

    y0, y1, x0, x1 = tile_of(tl.program_id(0), height, width, TILE_Y, TILE_X)
    tile = tl.arange(0, TILE_Y * TILE_X)
    row, column = tile // TILE_X, tile % TILE_X
    y, x = y0 + row, x0 + column
    inside = (y <= y1) & (x <= x1)
    q += b * q_b + h * q_h + offset_of(y0, x0, q_y, q_x)
    grad += b * g_b + h * g_h + offset_of(y0, x0, g_y, g_x)
    query = load_rows(q, row * q_y + column * q_x, q_d, inside, DIM, WIDE)
    g = load_rows(grad, row * g_y + column * g_x, g_d, inside, DIM, WIDE)
    query, g = query.to(tl.float32), g.to(tl.float32)
    scalar = pair * height * width + y * width + x
    log_sum = tl.load(lse + scalar, mask=inside, other=0.0)
    dot_og = tl.load(delta + scalar, mask=inside, other=0.0)
    k += b * k_b + h * k_h + offset_of(y0, x0, k_y, k_x)
    v += b * v_b + h * v_h + offset_of(y0, x0, v_y, v_x)
    first_y, first_x = first_key(y, height, K), first_key(x, width, K)

    # The further down a query, the further up its neighbourhood reaches.
    up = first_key(y1, height, K) - y1
    down = first_key(y0, height, K) - y0 + K
    left = first_key(x1, width, K) - x1
    right = first_key(x0, width, K) - x0 + K
    for move in range((down - up) * (right - left)):
        move_y = up + move // (right - left)
        move_x = left + move % (right - left)
        key_row, key_column = y + move_y - first_y, x + move_x - first_x
        seen = (key_row >= 0) & (key_row < K) & inside
        seen = (key_column >= 0) & (key_column < K) & seen
        row_k, column_k = row + move_y, column + move_x
        key = load_rows(k, row_k * k_y + column_k * k_x, k_d, seen, DIM, WIDE)
        value = load_rows(
            v, row_k * v_y + column_k * v_x, v_d, seen, DIM, WIDE
        )
        cell = (move_y + K - 1) * side + move_x + K - 1
        scores = tl.sum(query * key.to(tl.float32), 1) * scale
        scores = (scores + tl.load(table + cell)) * LOG2_E
        weights = tl.where(seen, tl.exp2(scores - log_sum), 0.0)
        slope = tl.sum(g * value.to(tl.float32), 1)
        total = tl.sum(weights * (slope - dot_og), 0)
        tl.store(dtable + cell, total)
