# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The gradient of a bilinearly read table, computed by matrix products.

Along each axis an entry is read with the weight ``max(0, 1 - |place -
entry|)``, a hat function. Queries form a grid, so a key contributes ``Hy^T S
Hx`` to the gradient of the table, with S the gradients of its scores (rows,
columns), Hy the hats (rows, entries) and Hx (columns, entries). So no sum
depends on the order of programs, and no score is added to memory by itself.
The factors are multiplied as float16, which holds hats to 2^-12. If queries
and keys are float32, each factor is a sum of two float16 numbers.
"""

import triton
import triton.language as tl

from .bias_parts import (
    RIM,
    load_four,
    load_points,
    place_between,
    read_bias,
    units_of,
)
from .kernel_parts import INTERPRETED, load_rows, multiply


@triton.jit
def hats(place, entry):
    """Returns the weights with which entries are read (hat functions)."""
    if INTERPRETED:
        hat = tl.maximum(1.0 - tl.abs(place - entry), 0.0)
    else:
        hat = tl.inline_asm_elementwise(
            """{
            .reg .f32 x;
            sub.f32 x, $1, $2;
            abs.f32 x, x;
            sub.sat.f32 $0, 0f3F800000, x;
            }""",
            '=f,f,f',
            [place, entry],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return hat


@triton.jit
def hats_of(places, entry):
    """Returns the hats (entries, places) of a block of places.

    Places are in reading order. One thread computes two neighbours and writes
    both at once.
    """
    N: tl.constexpr = places.shape[0] * places.shape[1]
    even, odd = tl.split(tl.reshape(places, (N // 2, 2)))
    both = tl.join(
        hats(even[None, :], entry[:, None]), hats(odd[None, :], entry[:, None])
    )
    return tl.reshape(both, (entry.shape[0], N))


@triton.jit
def held(x):
    """Returns `x` scaled to about 1, for float16, and the scale."""
    largest = tl.max(tl.max(tl.abs(x), 1), 0)
    power = largest.to(tl.int32, bitcast=True) & 0x7F800000
    inverse = (0x7F000000 - power).to(tl.float32, bitcast=True)
    return x * inverse, power.to(tl.float32, bitcast=True)


@triton.jit
def multiply_halves(left, right, FINE: tl.constexpr):
    """Multiplies float32 as float16, to 2^-12, or to 2^-22 if FINE.

    If FINE, the rest of each factor that float16 cannot represent is
    multiplied too.
    """
    left_16, right_16 = left.to(tl.float16), right.to(tl.float16)
    out = multiply(left_16, right_16, None, 'ieee')
    if FINE:
        rest = (left - left_16.to(tl.float32)).to(tl.float16)
        out = multiply(rest, right_16, out, 'ieee')
        rest = (right - right_16.to(tl.float32)).to(tl.float16)
        out = multiply(left_16, rest, out, 'ieee')
    return out


@triton.jit
def reads_window(places, first, SIDE: tl.constexpr):
    """Returns whether any place may read one of SIDE entries from `first`."""
    lowest, highest = tl.min(places), tl.max(places)
    return (highest > first + RIM - 1) & (lowest < first + RIM + SIDE)


@triton.jit
def slopes_of_tile(
    q, k, v, grad, record, block, key, value, point_y, point_x, cells,
    q_n, q_d, k_n, k_d, v_n, v_d, g_n, g_d, scale, height, width, y0, x0,
    factor_y, factor_x, cells_y, cells_x,
    DIM: tl.constexpr, WIDE: tl.constexpr, PART: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes the gradients of scores of a tile; zero outside the map.

    `key` and `value` are the first PART channels of the keys `block`.
    """
    tile = tl.arange(0, TILE_Y * TILE_X)
    row, column = tile // TILE_X, tile % TILE_X
    inside = (y0 + row < height) & (x0 + column < width)
    number = row * width + column
    first = y0 * width + x0
    far = first.to(tl.int64)
    q += far * q_n
    grad += far * g_n
    query = load_rows(q, number * q_n, q_d, inside, DIM, PART)
    g = load_rows(grad, number * g_n, g_d, inside, DIM, PART)
    scores = multiply(query, tl.trans(key), None, PRECISION)
    slope = multiply(g, tl.trans(value), None, PRECISION)
    for part in tl.static_range(PART, WIDE, PART):
        q += PART * q_d
        grad += PART * g_d
        k += PART * k_d
        v += PART * v_d
        there = block >= 0
        query = load_rows(q, number * q_n, q_d, inside, DIM - part, PART)
        near = load_rows(k, block * k_n, k_d, there, DIM - part, PART)
        scores = multiply(query, tl.trans(near), scores, PRECISION)
        g = load_rows(grad, number * g_n, g_d, inside, DIM - part, PART)
        near = load_rows(v, block * v_n, v_d, there, DIM - part, PART)
        slope = multiply(g, tl.trans(near), slope, PRECISION)
    number = tl.where(inside, first + number, 0)
    log_sum, delta, y, x = load_four(record + number * 4)
    log_sum = tl.where(inside, log_sum, float('inf'))
    place_y = place_between(y[:, None], point_y[None, :], factor_y)
    place_x = place_between(x[:, None], point_x[None, :], factor_x)
    bias, _, _ = read_bias(cells, place_y, place_x, cells_y, cells_x)
    weights = tl.exp2(scores * scale + (bias - log_sum[:, None]))
    return weights * (slope - delta[:, None])


@triton.jit(
    do_not_specialize=[
        'heads',
        'group_heads',
        'keys',
        'height',
        'width',
        'rows',
        'slice_keys',
    ]
)
def table_gradient_kernel(
    q, k, v, cells, points, grad, record, dtable,
    q_b, q_h, q_n, q_d, k_b, k_h, k_n, k_d, v_b, v_h, v_n, v_d,
    g_b, g_h, g_n, g_d,
    scale, heads, group_heads, keys, height, width,
    table_h, table_w, cells_y, cells_x, head_cells, rows, slice_keys,
    DIM: tl.constexpr, WIDE: tl.constexpr, PART: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, BLOCK: tl.constexpr,
    SIDE: tl.constexpr, PRECISION: tl.constexpr,
    FINE: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of a window of the table from a slice of keys.

    A window has SIDE x SIDE entries; grid (windows, B * heads, slices). The
    caller sums `dtable` (slices, B, heads, table_h, table_w). A program loops
    over tiles of queries and blocks of keys, and skips those that do not read
    the window. PART channels are in shared memory at a time.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, h = pair // heads, pair % heads
    cells += h * head_cells * 4
    points += pair // group_heads * keys * 2
    q += b * q_b + h * q_h
    k += b * k_b + h * k_h
    v += b * v_b + h * v_h
    grad += b * g_b + h * g_h
    record += pair * rows * 4
    factor_y, _ = units_of(table_h, cells_y)
    factor_x, _ = units_of(table_w, cells_x)
    windows_x = tl.cdiv(table_w, SIDE)
    window_y = tl.program_id(0) // windows_x * SIDE
    window_x = tl.program_id(0) % windows_x * SIDE
    side = tl.arange(0, SIDE)
    entry_y = (window_y + RIM + side).to(tl.float32)
    entry_x = (window_x + RIM + side).to(tl.float32)

    tiles_x = tl.cdiv(width, TILE_X)
    tiles = tl.cdiv(height, TILE_Y) * tiles_x
    begin = tl.program_id(2) * slice_keys
    end = tl.minimum(begin + slice_keys, keys)
    far = begin.to(tl.int64)
    k += far * k_n
    v += far * v_n
    acc = tl.zeros((SIDE, SIDE), tl.float32)
    for first in range(begin, end, BLOCK):
        # Padding repeats the last key, infinitely far from all entries.
        block = tl.arange(0, BLOCK)
        valid = first + block < end
        block = tl.minimum(block, end - 1 - first)
        there = block >= 0
        key = load_rows(k, block * k_n, k_d, there, DIM, PART)
        value = load_rows(v, block * v_n, v_d, there, DIM, PART)
        point_y, point_x = load_points(points, first + block, there)
        for tile in range(tiles):
            y0, x0 = tile // tiles_x * TILE_Y, tile % tiles_x * TILE_X
            rows_y = tl.minimum(y0 + tl.arange(0, TILE_Y), height - 1)
            columns_x = tl.minimum(x0 + tl.arange(0, TILE_X), width - 1)
            # The first column and first row give the places of the grid.
            grid_y = tl.load(record + rows_y * width * 4 + 2)
            grid_x = tl.load(record + columns_x * 4 + 3)
            at_y = grid_y[None, :] - point_y[:, None] * factor_y
            at_x = grid_x[None, :] - point_x[:, None] * factor_x
            at_y *= cells_y
            at_x *= cells_x
            at_y = tl.where(valid[:, None], at_y, float('-inf'))
            wanted = True
            if WINDOWS:
                wanted = reads_window(at_y, window_y, SIDE) & reads_window(
                    at_x, window_x, SIDE
                )
            if wanted:
                slope = slopes_of_tile(
                    q, k, v, grad, record, block, key, value,
                    point_y, point_x, cells,
                    q_n, q_d, k_n, k_d, v_n, v_d, g_n, g_d,
                    scale, height, width, y0, x0,
                    factor_y, factor_x, cells_y, cells_x,
                    DIM, WIDE, PART, TILE_Y, TILE_X, PRECISION,
                )  # fmt: skip
                slope, size = held(slope)
                slope = tl.reshape(tl.trans(slope), (BLOCK, TILE_Y, TILE_X))
                hats_x = tl.reshape(
                    hats_of(at_x, entry_x), (SIDE, BLOCK, TILE_X)
                )
                hats_x = tl.permute(hats_x, (1, 2, 0))
                sums = multiply_halves(slope, hats_x, FINE)
                sums = tl.reshape(sums, (BLOCK * TILE_Y, SIDE))
                flat_y = tl.reshape(at_y, (1, BLOCK * TILE_Y))
                hats_y = hats(flat_y, entry_y[:, None])
                acc += multiply_halves(hats_y, sums, FINE) * size
        k += BLOCK * k_n
        v += BLOCK * v_n
    written = tl.program_id(2) * tl.num_programs(1) + pair
    dtable += written * table_h * table_w
    y, x = window_y + side, window_x + side
    tl.store(
        dtable + y[:, None] * table_w + x[None, :],
        acc,
        mask=(y < table_h)[:, None] & (x < table_w)[None, :],
    )
