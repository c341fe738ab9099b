# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernel parts that read a bias table bilinearly at a displacement.

The bias of a query and a key is the table of the head, read at ``(T - 1) / 2
+ (query - point) (T - 1) / 4`` entries along an axis of T entries. Kernels
read *cells*, an array (heads, (cells_y + 1) cells_x + 1, 4): the value between
four entries is ``a + b x + (c + d x) y``, and one load of 16 bytes reads a, b,
c and d. Entry 0 is at cell RIM; cells outside the table are zero. cells_y and
cells_x, the numbers of cells, are powers of two, so dividing a place by them
is exact. A saturating addition, which costs no more than a plain one, keeps
places inside. Cell cells_x of a row is the first cell of the next row, which
is also zero.

The bias is in units of log 2 (see kernel_parts.py).
"""

import triton
import triton.language as tl

from .kernel_parts import INTERPRETED, LOG2_E

# Cells before entry 0: one cell of zeros, one that rises to the entry.
RIM = tl.constexpr(2)
# A float32 of this size has steps of 1, so adding it, rounded down, floors.
BIG = tl.constexpr(12582912.0)  # 1.5 * 2**23
BIG_BITS = tl.constexpr(0x4B400000)


@triton.jit
def units_of(size, cells):
    """Returns factor and shift that turn coordinates into places.

    A place is in units of all cells. That of a query at y and a point at p is
    ``(y factor + shift) - p factor``.
    """
    factor = (size - 1) * 0.25 / cells
    shift = ((size - 1) * 0.5 + RIM) / cells
    return factor, shift


@triton.jit
def place_between(query, point, factor):
    """Returns ``query - point factor``, clamped to [0, 1]; 0 for NaN."""
    if INTERPRETED:
        place = query - point * factor
        place = tl.where(place > 0.0, place, 0.0)
        place = tl.where(place < 1.0, place, 1.0)
    else:
        # Broadcast first: the instruction is elementwise.
        query, point = tl.broadcast(query, point)
        place = tl.inline_asm_elementwise(
            'fma.rn.sat.f32 $0, $1, $2, $3;',
            '=f,f,f,f',
            [point, -factor, query],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return place


@triton.jit
def floor_of(place, cells):
    """Returns the number of the cell of a place, plus BIG; exact."""
    if INTERPRETED:
        cell = tl.floor(place * cells) + BIG
    else:
        cell = tl.inline_asm_elementwise(
            'fma.rm.f32 $0, $1, $2, $3;',
            '=f,f,f,f',
            [place, cells, BIG],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return cell


@triton.jit
def load_four(pointers):
    """Loads four float32 from each pointer; pointers are multiples of 16."""
    if INTERPRETED:
        a, b = tl.load(pointers), tl.load(pointers + 1)
        c, d = tl.load(pointers + 2), tl.load(pointers + 3)
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            'ld.global.nc.v4.f32 {$0, $1, $2, $3}, [$4];',
            '=f,=f,=f,=f,l',
            [pointers.to(tl.int64)],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    return a, b, c, d


@triton.jit
def load_points(points, columns, valid):
    """Loads the coordinates of keys, y and x with one load."""
    pair = tl.load(
        points.to(tl.pointer_type(tl.int64)) + columns, mask=valid, other=0
    )
    y = pair.to(tl.int32).to(tl.float32, bitcast=True)
    x = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return y, x


@triton.jit
def read_bias(cells, place_y, place_x, cells_y, cells_x):
    """Reads the bias and its derivatives by y and x, in table entries.

    Args:
        cells: Cells of one head.
        place_y: See ``place_between``.
        place_x: As `place_y`.
        cells_y: Number of cells along y, a float32.
        cells_x: Number of cells along x, a float32.
    """
    whole_y, whole_x = floor_of(place_y, cells_y), floor_of(place_x, cells_x)
    cell_y, cell_x = whole_y - BIG, whole_x - BIG
    y, x = place_y * cells_y - cell_y, place_x * cells_x - cell_x
    number = cell_y * cells_x + whole_x  # in reading order, plus BIG
    number = number.to(tl.int32, bitcast=True)
    a, b, c, d = load_four(cells - 4 * BIG_BITS + 4 * number.to(tl.int64))
    slope_y, slope_x = c + d * x, b + d * y
    return a + b * x + slope_y * y, slope_y, slope_x


@triton.jit
def cells_kernel(
    table, cells, table_h, table_w, cells_y, cells_x, BLOCK: tl.constexpr
):
    """Computes the cells of a table; grid (blocks, heads)."""
    head = tl.program_id(1).to(tl.int64)
    total = (cells_y + 1) * cells_x + 1
    table += head * table_h * table_w
    cells += head * total * 4
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x = cell // cells_x - RIM, cell % cells_x - RIM
    inside = cell < total
    top, bottom = (y >= 0) & (y < table_h), (y >= -1) & (y < table_h - 1)
    left, right = (x >= 0) & (x < table_w), (x >= -1) & (x < table_w - 1)
    table += y * table_w + x
    top_left = tl.load(table, mask=inside & top & left, other=0.0)
    top_right = tl.load(table + 1, mask=inside & top & right, other=0.0)
    table += table_w
    bottom_left = tl.load(table, mask=inside & bottom & left, other=0.0)
    bottom_right = tl.load(table + 1, mask=inside & bottom & right, other=0.0)
    cells += 4 * cell
    b, c = top_right - top_left, bottom_left - top_left
    d = bottom_right - bottom_left - b
    tl.store(cells, top_left * LOG2_E, mask=inside)
    tl.store(cells + 1, b * LOG2_E, mask=inside)
    tl.store(cells + 2, c * LOG2_E, mask=inside)
    tl.store(cells + 3, d * LOG2_E, mask=inside)
