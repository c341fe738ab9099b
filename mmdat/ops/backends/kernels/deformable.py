# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernels of deformable attention with a table as position bias.

The bias of a query and a key is the table of the head, read bilinearly at a
place that depends on how far the two are apart: ``(T - 1) / 2 + (query -
point) (T - 1) / 4`` entries along an axis of T. The kernels read *corners*,
an array (heads, Ty + 4, Tx + 4, 4) of the four entries around each cell, zeros
outside the table. One load of 16 bytes brings all that a score needs, and a
place far outside is moved to the rim of zeros, not masked.

Blocks are (queries, keys) in all kernels: neighbours along a row of queries
read neighbouring cells.
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

# Cells of zeros on either side of the table.
RIM = tl.constexpr(2)


@triton.jit
def read_place(query, point, size):
    """Cell of the corners and place within it, along an axis of the table."""
    place = (query - point) * ((size - 1) * 0.25) + (size - 1) * 0.5
    # A place that is no number stays none, but its cell exists: maximum and
    # minimum may take either of the two.
    held = tl.where(place > -2.0, place, -2.0)
    held = tl.where(held < size + 1.0, held, size + 1.0)
    cell = tl.floor(held)
    held = tl.where(place == place, held, place)
    return cell.to(tl.int32) + RIM, held - cell


@triton.jit
def read_cells(query_y, query_x, point_y, point_x, table_h, table_w):
    """Cell, counted in reading order, and the place in it along y and x."""
    cell_y, y = read_place(query_y, point_y, table_h)
    cell_x, x = read_place(query_x, point_x, table_w)
    return cell_y * (table_w + 2 * RIM) + cell_x, y, x


@triton.jit
def corners_of(corners, cell):
    """Pointers (M, N, 4) to the entries around `cell` (M, N)."""
    return (corners + 4 * cell)[:, :, None] + tl.arange(0, 4)[None, None, :]


@triton.jit
def split_corners(x):
    """(M, N, 4) to (M, N): top left, top right, bottom left, bottom right."""
    left, right = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2)))
    top_left, bottom_left = tl.split(left)
    top_right, bottom_right = tl.split(right)
    return top_left, top_right, bottom_left, bottom_right


@triton.jit
def join_corners(top_left, top_right, bottom_left, bottom_right):
    """The inverse of :func:`split_corners`."""
    left = tl.join(top_left, bottom_left)
    right = tl.join(top_right, bottom_right)
    x = tl.join(left, right)
    return tl.reshape(x, (x.shape[0], x.shape[1], 4))


@triton.jit
def bilinear(corners, cell, y, x):
    """The bias (M, N), and its derivatives along y and x."""
    top_left, top_right, bottom_left, bottom_right = split_corners(
        tl.load(corners_of(corners, cell))
    )
    top, bottom = top_right - top_left, bottom_right - bottom_left
    slope_y = bottom_left - top_left + (bottom - top) * x
    slope_x = top + (bottom - top) * y
    return top_left + top * x + slope_y * y, slope_y, slope_x


@triton.jit
def load_queries(query_y, query_x, rows, valid, width):
    """Coordinates of queries, counted along the rows of their map."""
    y = tl.load(query_y + rows // width, mask=valid, other=0.0)
    x = tl.load(query_x + rows % width, mask=valid, other=0.0)
    return y, x


@triton.jit
def load_points(points, columns, valid):
    """Coordinates of keys."""
    y = tl.load(points + 2 * columns, mask=valid, other=0.0)
    x = tl.load(points + 2 * columns + 1, mask=valid, other=0.0)
    return y, x


# In the lists of arguments, q_b, q_h, q_n, q_d are the strides of q over
# batch, head, query and channel; the same for k, v, out (o) and its gradient
# (g). What else is read or written is contiguous.


@triton.jit
def forward_kernel(
    q, k, v, corners, query_y, query_x, points, out, lse,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    o_b, o_h, o_n, o_d,
    scale, heads, group_heads, queries, keys, width, table_h, table_w,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries on all keys; grid (blocks, B * heads)."""
    pair = tl.program_id(1).to(tl.int64)  # of image and head
    b, h = pair // heads, pair % heads
    first = tl.program_id(0) * BLOCK_Q
    far = first.to(tl.int64)
    q += b * q_b + h * q_h + far * q_n
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    out += b * o_b + h * o_h + far * o_n
    corners += h * (table_h + 2 * RIM) * (table_w + 2 * RIM) * 4
    points += pair // group_heads * keys * 2

    block = tl.arange(0, BLOCK_Q)
    inside = first + block < queries
    query = load_rows(q, block * q_n, q_d, inside, DIM, WIDE)
    y, x = load_queries(query_y, query_x, first + block, inside, width)

    acc = tl.zeros((BLOCK_Q, WIDE), tl.float32)
    top = tl.full((BLOCK_Q,), float('-inf'), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    for start in range(0, keys, BLOCK_K):
        column = tl.arange(0, BLOCK_K)
        valid = start + column < keys
        key = load_rows(k, column * k_n, k_d, valid, DIM, WIDE)
        value = load_rows(v, column * v_n, v_d, valid, DIM, WIDE)
        k += BLOCK_K * k_n
        v += BLOCK_K * v_n
        point_y, point_x = load_points(points, start + column, valid)
        cell, place_y, place_x = read_cells(
            y[:, None], x[:, None], point_y[None, :], point_x[None, :],
            table_h, table_w,
        )  # fmt: skip
        bias, _, _ = bilinear(corners, cell, place_y, place_x)
        scores = multiply(query, tl.trans(key), None, PRECISION)
        scores = (scores * scale + bias) * LOG2_E
        scores = tl.where(valid[None, :], scores, float('-inf'))
        acc, top, total = softmax_step(
            scores, value, acc, top, total, PRECISION
        )
    acc, log_sum = softmax_end(acc, top, total)
    store_rows(out, block * o_n, o_d, inside, DIM, WIDE, acc)
    tl.store(lse + pair * queries + first + block, log_sum, mask=inside)


@triton.jit
def query_gradient_kernel(
    q, k, v, corners, query_y, query_x, points, out, lse, grad, delta, dq,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    o_b, o_h, o_n, o_d, g_b, g_h, g_n, g_d, dq_b, dq_h, dq_n, dq_d,
    scale, heads, group_heads, queries, keys, width, table_h, table_w,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; grid (blocks, B * heads).

    Also writes `delta`, which the gradient of the keys needs.
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
    corners += h * (table_h + 2 * RIM) * (table_w + 2 * RIM) * 4
    points += pair // group_heads * keys * 2

    block = tl.arange(0, BLOCK_Q)
    inside = first + block < queries
    query = load_rows(q, block * q_n, q_d, inside, DIM, WIDE)
    o = load_rows(out, block * o_n, o_d, inside, DIM, WIDE)
    g = load_rows(grad, block * g_n, g_d, inside, DIM, WIDE)
    y, x = load_queries(query_y, query_x, first + block, inside, width)
    scalar = pair * queries + first + block
    log_sum = tl.load(lse + scalar, mask=inside, other=0.0)
    dot_og = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(delta + scalar, dot_og, mask=inside)

    acc = tl.zeros((BLOCK_Q, WIDE), tl.float32)
    for start in range(0, keys, BLOCK_K):
        column = tl.arange(0, BLOCK_K)
        valid = start + column < keys
        key = load_rows(k, column * k_n, k_d, valid, DIM, WIDE)
        value = load_rows(v, column * v_n, v_d, valid, DIM, WIDE)
        k += BLOCK_K * k_n
        v += BLOCK_K * v_n
        point_y, point_x = load_points(points, start + column, valid)
        cell, place_y, place_x = read_cells(
            y[:, None], x[:, None], point_y[None, :], point_x[None, :],
            table_h, table_w,
        )  # fmt: skip
        bias, _, _ = bilinear(corners, cell, place_y, place_x)
        _, slope = score_gradient(
            query, key, g, value, bias, inside[:, None] & valid[None, :],
            scale, log_sum[:, None], dot_og[:, None], PRECISION,
        )  # fmt: skip
        acc = multiply(slope.to(key.dtype), key, acc, PRECISION)
    store_rows(dq, block * dq_n, dq_d, inside, DIM, WIDE, acc * scale)


@triton.jit
def key_gradient_kernel(
    q, k, v, corners, query_y, query_x, points, lse, grad, delta,
    dk, dv, dcorners, dpoints,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    g_b, g_h, g_n, g_d,
    scale, heads, group_heads, queries, keys, width, table_h, table_w,
    slice_queries,
    DIM: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    NEEDS_TABLE: tl.constexpr, NEEDS_POINTS: tl.constexpr,
):  # fmt: skip
    """Gradient of all that belongs to a block of keys, from some queries.

    Grid (blocks, B * heads, slices): few keys make few blocks, so that the
    queries are shared out among programs too. `dk`, `dv` (slices, B, heads,
    keys, DIM) and `dpoints` (slices, B, heads, keys, 2) are written once and
    summed by the caller; `dcorners` is added to by all programs at once.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    table = h * (table_h + 2 * RIM) * (table_w + 2 * RIM) * 4
    corners += table
    dcorners += table
    points += pair // group_heads * keys * 2

    first = tl.program_id(0) * BLOCK_K
    block = tl.arange(0, BLOCK_K)
    inside = first + block < keys
    k += b * k_b + h * k_h + first.to(tl.int64) * k_n
    v += b * v_b + h * v_h + first.to(tl.int64) * v_n
    key = load_rows(k, block * k_n, k_d, inside, DIM, WIDE)
    value = load_rows(v, block * v_n, v_d, inside, DIM, WIDE)
    point_y, point_x = load_points(points, first + block, inside)

    begin = tl.program_id(2) * slice_queries
    end = tl.minimum(begin + slice_queries, queries)
    q += b * q_b + h * q_h + begin.to(tl.int64) * q_n
    grad += b * g_b + h * g_h + begin.to(tl.int64) * g_n
    lse += pair * queries
    delta += pair * queries
    key_acc = tl.zeros((BLOCK_K, WIDE), tl.float32)
    value_acc = tl.zeros((BLOCK_K, WIDE), tl.float32)
    y_acc = tl.zeros((BLOCK_K,), tl.float32)
    x_acc = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(begin, end, BLOCK_Q):
        row = tl.arange(0, BLOCK_Q)
        rows = start + row
        valid = rows < end
        query = load_rows(q, row * q_n, q_d, valid, DIM, WIDE)
        g = load_rows(grad, row * g_n, g_d, valid, DIM, WIDE)
        q += BLOCK_Q * q_n
        grad += BLOCK_Q * g_n
        y, x = load_queries(query_y, query_x, rows, valid, width)
        log_sum = tl.load(lse + rows, mask=valid, other=0.0)
        dot_og = tl.load(delta + rows, mask=valid, other=0.0)
        both = inside[:, None] & valid[None, :]
        cell, place_y, place_x = read_cells(
            y[None, :], x[None, :], point_y[:, None], point_x[:, None],
            table_h, table_w,
        )  # fmt: skip
        bias, slope_y, slope_x = bilinear(corners, cell, place_y, place_x)
        weights, slope = score_gradient(
            key, query, value, g, bias, both,
            scale, log_sum[None, :], dot_og[None, :], PRECISION,
        )  # fmt: skip
        value_acc = multiply(weights.to(g.dtype), g, value_acc, PRECISION)
        key_acc = multiply(slope.to(query.dtype), query, key_acc, PRECISION)
        if NEEDS_POINTS:
            y_acc += tl.sum(slope * slope_y, 1)
            x_acc += tl.sum(slope * slope_x, 1)
        if NEEDS_TABLE:
            bottom, right = slope * place_y, slope * place_x
            bottom_right = bottom * place_x
            gradient = join_corners(
                slope - bottom - right + bottom_right,
                right - bottom_right,
                bottom - bottom_right,
                bottom_right,
            )
            tl.atomic_add(
                corners_of(dcorners, cell),
                gradient,
                mask=both[:, :, None],
                sem='relaxed',
            )
    written = tl.program_id(2) * tl.num_programs(1) + pair
    dk += (written * keys + first) * DIM
    dv += (written * keys + first) * DIM
    store_rows(dk, block * DIM, 1, inside, DIM, WIDE, key_acc * scale)
    store_rows(dv, block * DIM, 1, inside, DIM, WIDE, value_acc)
    if NEEDS_POINTS:
        dpoints += (written * keys + first) * 2
        y_acc = y_acc * ((table_h - 1) * -0.25)
        x_acc = x_acc * ((table_w - 1) * -0.25)
        tl.store(dpoints + 2 * block, y_acc, mask=inside)
        tl.store(dpoints + 2 * block + 1, x_acc, mask=inside)
