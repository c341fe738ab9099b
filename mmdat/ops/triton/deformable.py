# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention with a table as bias, fused into Triton kernels.

The kernels compute the bias in float32 where they add it, and hold the scores
of one block of queries and keys in registers. No memory grows with (queries x
keys), forward or backward. Tested in Triton's interpreter and compiled for
GPUs; not yet timed on a GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..custom_op import operator, register_backward
from ..position_bias import PositionBias, TableBias
from . import common as triton_common
from .common import (
    ceil_div,
    dot_precision,
    has_tf32,
    on_device,
    strides,
    widened,
    with_rows,
)

# Queries and keys of a block, by the padded channels of a head. Registers
# limit them (see tools/dev/kernel_cost.py). A block of QUERY_BLOCKS contains
# whole blocks of KEY_BLOCKS. Loads are not staged (num_stages=1), because
# staging copies table reads through shared memory.
FORWARD_BLOCKS = {16: (64, 64), 32: (64, 64), 64: (64, 32), 128: (32, 16)}
# Most keys of a block in float32, which needs more registers.
MAX_FLOAT32_KEYS = dict(forward=32, queries=16, table=16)
QUERY_BLOCKS = {16: (64, 32), 32: (64, 32), 64: (64, 32), 128: (16, 32)}
KEY_BLOCKS = {16: (16, 64), 32: (16, 64), 64: (16, 64), 128: (16, 16)}
LAUNCH = dict(num_warps=4, num_stages=1)
# For the gradient of the table: rows and columns of a tile of queries, keys of
# a block, and side of a window of the table.
TABLE_BLOCKS = {
    16: (16, 16, 32),
    32: (16, 16, 32),
    64: (16, 16, 16),
    128: (16, 16, 16),
}
# Bytes of a query in shared memory at a time, and keys of a block, on GPUs
# before compute capability 8.0, which have 64 KB of shared memory per block.
TABLE_PART = 64
MAX_OLD_KEYS = 16
TABLE_WINDOW = 32
TABLE_LAUNCH = dict(num_warps=8, num_stages=1)
CELLS_BLOCK = 256

# Few keys give few programs. So the queries (for the table, the keys) are
# divided into slices too, until enough programs occupy a large GPU or slices
# get short.
PROGRAMS = 1024
SLICE_QUERIES = 1024
# float32 numbers the cells in steps of one (see bias_parts.py).
MAX_CELLS = 1 << 21


def not_supported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Returns why ``deformable_attention`` cannot run here, or None."""
    if not (bias is None or isinstance(bias, TableBias)):
        return f'A bias must be a TableBias; got {type(bias).__name__}.'
    reason = triton_common.not_supported(
        q, k, v, q.shape[1], dropout, *(bias or ())
    )
    if reason or bias is None:
        return reason
    dtypes = {x.dtype for x in bias[1:]} | {bias.table.dtype}
    if torch.float64 in dtypes:
        return 'Table and coordinates must not be float64.'
    if bias.query_y.requires_grad or bias.query_x.requires_grad:
        return 'The axes of the queries get no gradient.'
    cells_y, cells_x = cells_of(bias.table)
    if cells_y * cells_x > MAX_CELLS:
        return (
            f'The table must have at most {MAX_CELLS} cells, padded to '
            f'powers of two; got {cells_y} x {cells_x}.'
        )
    return None


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: TableBias | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.deformable_attention``."""
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    out, _ = _attention(
        q,
        k,
        v,
        bias.table.float(),
        bias.query_y.float(),
        bias.query_x.float(),
        bias.points_yx.float(),
        scale,
    )
    return out


def cells_of(table: Tensor) -> tuple[int, int]:
    """Returns the cells of a table (heads, Ty, Tx) by y, x: powers of two."""
    cells = [1, 1]
    for axis, size in enumerate(table.shape[1:]):
        while cells[axis] < size + 2:  # also of symbolic sizes
            cells[axis] *= 2
    return tuple(cells)


def _empty_like_queries(q: Tensor) -> Tensor:
    """Allocates (B, heads, Q, d), in memory as (B, Q, heads, d)."""
    batch, heads, queries, dim = q.shape
    return q.new_empty(batch, queries, heads, dim).transpose(1, 2)


def _fill_cells(table: Tensor) -> Tensor:
    """Computes the cells of a table with a kernel."""
    from .bias_parts import cells_kernel

    table = table.contiguous()
    cells_y, cells_x = cells_of(table)
    heads, number = table.shape[0], (cells_y + 1) * cells_x + 1
    cells = table.new_empty(heads, number, 4)
    cells_kernel[(ceil_div(number, CELLS_BLOCK), heads)](
        table, cells, *table.shape[1:], cells_y, cells_x, BLOCK=CELLS_BLOCK
    )
    return cells


def _aligned(points: Tensor) -> Tensor:
    """Makes points contiguous and aligns each pair to 8 bytes."""
    points = points.contiguous()
    return points if points.data_ptr() % 8 == 0 else points.clone()


def _table_sizes(table: Tensor, cells: Tensor) -> tuple:
    """Returns the sizes of the table and its cells, as kernel arguments."""
    cells_y, cells_x = cells_of(table)
    return *table.shape[1:], float(cells_y), float(cells_x), cells.shape[1]


def _blocks(
    table: dict[int, tuple[int, int]], q: Tensor, max_keys: int | None = None
) -> dict:
    """Returns a kernel's constants; float32 blocks have up to `max_keys`."""
    dim = q.shape[-1]
    wide = widened(dim)
    block_q, block_k = table[wide]
    if max_keys and q.dtype == torch.float32:
        block_k = min(block_k, max_keys)
    return dict(
        DIM=dim,
        WIDE=wide,
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        PRECISION=dot_precision(wide),
        **LAUNCH,
    )


@operator('table_attention')
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    points: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Computes attention, and log2 of the sums of exponentials.

    Args:
        q: (B, heads, Q, d).
        k: (B, heads, Ns, d).
        v: As `k`.
        table: (heads, Ty, Tx), float32.
        query_y: (H,), float32.
        query_x: (W,), float32.
        points: (B, groups, Hk, Wk, 2), float32.
        scale: Factor on the scores.

    Returns:
        Output (B, heads, Q, d) and sums (B, heads, Q), float32.
    """
    from .deformable_kernels import forward_kernel
    from .kernel_parts import LOG2_E

    points = _aligned(points)
    query_y, query_x = query_y.contiguous(), query_x.contiguous()
    batch, heads, queries, dim = q.shape
    out, lse = _fake(q)
    with on_device(q):
        cells = _fill_cells(table)
        blocks = _blocks(FORWARD_BLOCKS, q, MAX_FLOAT32_KEYS['forward'])
        grid = ceil_div(queries, blocks['BLOCK_Q']), batch * heads
        forward_kernel[grid](
            q, k, v, cells, query_y, query_x, points, out, lse,
            *strides(q, k, v, out), scale * LOG2_E.value,
            heads, heads // points.shape[1], queries, k.shape[2],
            query_x.numel(), *_table_sizes(table, cells), **blocks,
        )  # fmt: skip
    return out, lse


@operator('table_attention_backward')
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    points: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    needs_table: bool,
    needs_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of q, k, v, `table` and `points`.

    See `_attention`. Gradients of `table` and `points` that are not needed
    are zeros.
    """
    from . import deformable_kernels as kernels
    from .kernel_parts import LOG2_E

    grad, points = with_rows(grad), _aligned(points)
    query_y, query_x = query_y.contiguous(), query_x.contiguous()
    scale = scale * LOG2_E.value
    batch, heads, queries, dim = q.shape
    groups, keys = points.shape[1], k.shape[2]
    group_heads = heads // groups
    dq = _empty_like_queries(q)
    with on_device(q):
        cells = _fill_cells(table)
        sizes = _table_sizes(table, cells)
        blocks = _blocks(QUERY_BLOCKS, q, MAX_FLOAT32_KEYS['queries'])
        grid = ceil_div(queries, blocks['BLOCK_Q']), batch * heads
        key_blocks = _blocks(KEY_BLOCKS, q)
        rows = grid[0] * blocks['BLOCK_Q']
        record = lse.new_empty(batch, heads, rows, 4)
        kernels.query_gradient_kernel[grid](
            q, k, v, cells, query_y, query_x, points, out, lse, grad, record,
            dq, *strides(q, k, v, out, grad, dq), scale,
            heads, group_heads, queries, keys, query_x.numel(), *sizes, rows,
            **blocks,
        )  # fmt: skip

        blocks = key_blocks
        programs = ceil_div(keys, blocks['BLOCK_K']), batch * heads
        slices = min(
            ceil_div(PROGRAMS, programs[0] * programs[1]),
            ceil_div(queries, SLICE_QUERIES),
        )
        each = ceil_div(queries, slices * blocks['BLOCK_Q'])
        each *= blocks['BLOCK_Q']
        slices = ceil_div(queries, each)
        shape = slices, batch, heads, keys
        dk, dv = (lse.new_empty(*shape, dim) for _ in range(2))
        dpoints = lse.new_zeros(*shape, 2)
        kernels.key_gradient_kernel[(*programs, slices)](
            q, k, v, cells, points, grad, record, dk, dv, dpoints,
            *strides(q, k, v, grad), scale,
            heads, group_heads, queries, keys, *sizes, rows, each,
            **blocks, NEEDS_POINTS=needs_points,
        )  # fmt: skip
        if needs_table:
            dtable = _table_gradient(
                grad, q, k, v, cells, points, record, scale,
                (query_y.numel(), query_x.numel()), sizes,
            )  # fmt: skip
        else:
            dtable = torch.zeros_like(table)
    # Heads of a group share their points.
    dpoints = dpoints.unflatten(2, (groups, group_heads)).sum((0, 3))
    return (
        dq,
        dk.sum(0).to(k.dtype),
        dv.sum(0).to(v.dtype),
        dtable,
        dpoints.reshape(points.shape),
    )


def _table_gradient(
    grad, q, k, v, cells, points, record, scale, size, sizes
) -> Tensor:
    """Computes the gradient of the table (heads, Ty, Tx); deterministic."""
    from .table_gradient_kernel import table_gradient_kernel

    batch, heads, keys, dim = k.shape
    wide = widened(dim)
    tile_y, tile_x, block = TABLE_BLOCKS[wide]
    if q.dtype == torch.float32:
        block = min(block, MAX_FLOAT32_KEYS['table'])
    if not has_tf32():
        block = min(block, MAX_OLD_KEYS)
    windows = [ceil_div(n, TABLE_WINDOW) for n in sizes[:2]]
    programs = windows[0] * windows[1], batch * heads
    slices = min(
        ceil_div(PROGRAMS, programs[0] * programs[1]), ceil_div(keys, block)
    )
    each = ceil_div(keys, slices * block) * block
    slices = ceil_div(keys, each)
    dtable = record.new_empty(slices, batch, heads, *sizes[:2])
    table_gradient_kernel[(*programs, slices)](
        q, k, v, cells, points, grad, record, dtable,
        *strides(q, k, v, grad), scale, heads, heads // points.shape[1], keys,
        *size, *sizes, record.shape[2], each,
        DIM=dim, WIDE=wide, PART=min(wide, TABLE_PART // q.element_size()),
        TILE_Y=tile_y, TILE_X=tile_x, BLOCK=block,
        SIDE=TABLE_WINDOW, PRECISION=dot_precision(wide),
        FINE=q.dtype == torch.float32, WINDOWS=max(windows) > 1,
        **TABLE_LAUNCH,
    )  # fmt: skip
    return dtable.sum((0, 1))


def _fake(q, *_):
    """Returns empty outputs of the shapes of ``_attention``, for tracing."""
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return _empty_like_queries(q), lse


def _fake_backward(grad, q, k, v, table, query_y, query_x, points, *_):
    """Returns empty outputs like ``_attention_backward``, for tracing."""
    others = (x.new_empty(x.shape) for x in (k, v, table, points))
    return _empty_like_queries(q), *others


def _backward_pass(backward, ctx, grad, _):
    needs = ctx.needs_input_grad
    dq, dk, dv, dtable, dpoints = backward(
        grad, *ctx.saved_tensors, *ctx.settings, needs[3], needs[6]
    )
    return dq, dk, dv, dtable, None, None, dpoints, None


register_backward(
    _attention,
    _attention_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    backward=_backward_pass,
)
