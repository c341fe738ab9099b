# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention with a table as bias, fused into Triton kernels.

The bias is computed where it is added, in float32, and the scores of a few
queries and keys exist at a time, in registers: nothing grows with (queries x
keys), forward or backward. Proven in Triton's interpreter and compiled for
GPUs; not yet timed on one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..position_bias import PositionBias, TableBias
from . import triton_common
from .operators import connect, operator
from .triton_common import (
    float32_precision,
    on_device,
    widened,
)

# Queries and keys of a block, by the padded channels of a head. Reading the
# table takes more registers than the products do, so that blocks are smaller
# than plain attention would have them: with these and four warps, ptxas keeps
# float16 and bfloat16 in registers for compute capability 8.0 and 9.0 (of
# float32 multiplied exactly, some is spilled). Loads are not staged
# (num_stages=1): staging takes what is read from the table through shared
# memory, 16 bytes for each score.
FORWARD_BLOCKS = {16: (64, 32), 32: (64, 32), 64: (32, 32), 128: (32, 16)}
QUERY_BLOCKS = {16: (64, 32), 32: (64, 32), 64: (32, 32), 128: (16, 32)}
KEY_BLOCKS = {16: (16, 64), 32: (16, 64), 64: (16, 32), 128: (16, 16)}
LAUNCH = dict(num_warps=4, num_stages=1)

# Few keys make few programs: the queries are shared out as well until there
# are as many programs as keep a large GPU busy, or slices get short.
PROGRAMS = 1024
SLICE_QUERIES = 1024


def declines(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Why :func:`deformable_attention` cannot run here, or None."""
    reason = triton_common.declines(q, k, v, dropout)
    if reason or bias is None:
        return reason
    if not isinstance(bias, TableBias):
        return f'A bias must be a TableBias; got {type(bias).__name__}.'
    dtypes = {x.dtype for x in bias[1:]} | {bias.table.dtype}
    if torch.float64 in dtypes:
        return 'Table and coordinates must not be float64.'
    if bias.query_y.requires_grad or bias.query_x.requires_grad:
        return 'The axes of the queries get no gradient.'
    if torch.are_deterministic_algorithms_enabled() and (
        bias.table.requires_grad
    ):
        return (
            'The gradient of the table is summed in varying order; '
            'deterministic algorithms are asked for.'
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
    """See :func:`mmdat.ops.deformable_attention`."""
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    out, _ = _attention(
        q,
        k,
        v,
        table_corners(bias.table.float()),
        bias.query_y.float(),
        bias.query_x.float(),
        bias.points_yx.float(),
        scale,
    )
    return out


def table_corners(table: Tensor) -> Tensor:
    """The four entries around each cell, zeros outside.

    Args:
        table: (heads, Ty, Tx).

    Returns:
        Tensor (heads, Ty + 4, Tx + 4, 4); cell 2, 2 begins at entry 0, 0. The
        last axis is top left, top right, bottom left, bottom right.
    """
    table = F.pad(table, (2, 3, 2, 3))
    top, bottom = table[:, :-1], table[:, 1:]
    corners = top[..., :-1], top[..., 1:], bottom[..., :-1], bottom[..., 1:]
    return torch.stack(corners, dim=-1)


def _empty_like_queries(q: Tensor) -> Tensor:
    """Room for (B, heads, Q, d), in memory as (B, Q, heads, d)."""
    batch, heads, queries, dim = q.shape
    return q.new_empty(batch, queries, heads, dim).transpose(1, 2)


def _sizes(
    q: Tensor, k: Tensor, corners: Tensor, query_x: Tensor, points: Tensor
) -> tuple[int, ...]:
    """The sizes that all kernels ask for, in their order."""
    return (
        q.shape[1],
        q.shape[1] // points.shape[1],
        q.shape[2],
        k.shape[2],
        query_x.numel(),
        corners.shape[1] - 4,
        corners.shape[2] - 4,
    )


def _blocks(table: dict[int, tuple[int, int]], dim: int) -> dict:
    """Constants of a kernel for heads of `dim` channels."""
    wide = widened(dim)
    block_q, block_k = table[wide]
    return dict(
        DIM=dim,
        WIDE=wide,
        BLOCK_Q=block_q,
        BLOCK_K=block_k,
        PRECISION=float32_precision(),
        **LAUNCH,
    )


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


@operator('table_attention')
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    corners: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    points: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention, and the sums of exponentials as logarithms to base 2.

    Args:
        q: (B, heads, Q, d).
        k: (B, heads, Ns, d).
        v: As `k`.
        corners: See :func:`table_corners`.
        query_y: (H,).
        query_x: (W,).
        points: (B, groups, Hk, Wk, 2).
        scale: Factor on the scores.

    Returns:
        Output (B, heads, Q, d) and sums (B, heads, Q), float32.
    """
    from .kernels.deformable import forward_kernel

    corners, points = corners.contiguous(), points.contiguous()
    query_y, query_x = query_y.contiguous(), query_x.contiguous()
    batch, heads, queries, dim = q.shape
    out, lse = _empty(q)
    blocks = _blocks(FORWARD_BLOCKS, dim)
    grid = _ceil(queries, blocks['BLOCK_Q']), batch * heads
    with on_device(q):
        forward_kernel[grid](
            q, k, v, corners, query_y, query_x, points, out, lse,
            *q.stride(), *k.stride(), *v.stride(), *out.stride(),
            scale, *_sizes(q, k, corners, query_x, points), **blocks,
        )  # fmt: skip
    return out, lse


@operator('table_attention_backward')
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    corners: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    points: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    needs_table: bool,
    needs_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, `corners` and `points`, see `_attention`.

    Those of `corners` and `points` are zeros where not needed.
    """
    from .kernels import deformable as kernels

    corners, points = corners.contiguous(), points.contiguous()
    query_y, query_x = query_y.contiguous(), query_x.contiguous()
    batch, heads, queries, dim = q.shape
    groups, keys = points.shape[1], k.shape[2]
    sizes = _sizes(q, k, corners, query_x, points)
    dq = _empty_like_queries(q)
    delta = torch.empty_like(lse)
    with on_device(q):
        blocks = _blocks(QUERY_BLOCKS, dim)
        grid = _ceil(queries, blocks['BLOCK_Q']), batch * heads
        kernels.query_gradient_kernel[grid](
            q, k, v, corners, query_y, query_x, points, out, lse, grad, delta,
            dq, *q.stride(), *k.stride(), *v.stride(), *out.stride(),
            *grad.stride(), *dq.stride(), scale, *sizes, **blocks,
        )  # fmt: skip

        blocks = _blocks(KEY_BLOCKS, dim)
        programs = _ceil(keys, blocks['BLOCK_K']), batch * heads
        slices = min(
            _ceil(PROGRAMS, programs[0] * programs[1]),
            _ceil(queries, SLICE_QUERIES),
        )
        shape = slices, batch, heads, keys
        dk, dv = (lse.new_empty(*shape, dim) for _ in range(2))
        dpoints = lse.new_zeros(*shape, 2)
        dcorners = torch.zeros_like(corners)
        kernels.key_gradient_kernel[(*programs, slices)](
            q, k, v, corners, query_y, query_x, points, lse, grad, delta,
            dk, dv, dcorners, dpoints,
            *q.stride(), *k.stride(), *v.stride(), *grad.stride(),
            scale, *sizes, _ceil(queries, slices), **blocks,
            NEEDS_TABLE=needs_table, NEEDS_POINTS=needs_points,
        )  # fmt: skip
    # Heads of a group share their points.
    dpoints = dpoints.unflatten(2, (groups, heads // groups)).sum((0, 3))
    return (
        dq,
        dk.sum(0).to(k.dtype),
        dv.sum(0).to(v.dtype),
        dcorners,
        dpoints.reshape(points.shape),
    )


def _empty(q, *_):
    """What :func:`_attention` returns, not yet filled."""
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return _empty_like_queries(q), lse


def _empty_backward(grad, q, k, v, corners, query_y, query_x, points, *_):
    """What :func:`_attention_backward` returns, not yet filled."""
    dk, dv = (x.new_empty(x.shape) for x in (k, v))
    dcorners, dpoints = (x.new_empty(x.shape) for x in (corners, points))
    return _empty_like_queries(q), dk, dv, dcorners, dpoints


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(backward, ctx, grad, _):
    needs = ctx.needs_input_grad
    dq, dk, dv, dcorners, dpoints = backward(
        grad, *ctx.saved_tensors, ctx.scale, needs[3], needs[6]
    )
    return dq, dk, dv, dcorners, None, None, dpoints, None


connect(
    _attention,
    _attention_backward,
    empty=_empty,
    empty_backward=_empty_backward,
    save=_save,
    differentiate=_differentiate,
)
