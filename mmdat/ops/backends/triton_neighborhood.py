# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Neighbourhood attention fused into Triton kernels.

Tiles of queries meet all keys that any of them sees; scores exist for one
tile at a time, in registers. Proven in Triton's interpreter and compiled for
GPUs; not yet timed on one.
"""

import torch
from torch import Tensor

from . import triton_common
from .operators import connect, operator
from .triton_common import (
    float32_precision,
    on_device,
    widened,
)

# Rows and columns of a tile of queries, and how many keys it meets at a time,
# by the padded channels of a head. 8 x 8 queries see 14 x 14 keys where K is
# 7, so that a key is read about 3 times, not 49. With these and four warps,
# ptxas keeps all in registers, or nearly, for compute capability 8.0 and 9.0.
TILES = {16: (8, 8, 32), 32: (8, 8, 32), 64: (4, 8, 32), 128: (4, 8, 16)}
LAUNCH = dict(num_warps=4, num_stages=1)


def declines(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> str | None:
    """Why :func:`neighborhood_attention` cannot run here, or None."""
    if bias_table.dtype == torch.float64:
        return 'The bias table must not be float64.'
    return triton_common.declines(q, k, v, dropout)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.neighborhood_attention`."""
    out, _ = _attention(q, k, v, bias_table.float(), kernel_size, scale)
    return out


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(s for x in tensors for s in x.stride())


def _constants(dim: int, kernel_size: int) -> dict:
    """Constants of the kernels."""
    wide = widened(dim)
    tile_y, tile_x, block = TILES[wide]
    return dict(
        K=kernel_size,
        DIM=dim,
        WIDE=wide,
        TILE_Y=tile_y,
        TILE_X=tile_x,
        BLOCK=block,
        PRECISION=float32_precision(),
        **LAUNCH,
    )


def _grid(q: Tensor, constants: dict) -> tuple[int, int]:
    """Tiles of a map, and pairs of image and head."""
    tiles_y = -(-q.shape[1] // constants['TILE_Y'])
    tiles_x = -(-q.shape[2] // constants['TILE_X'])
    return tiles_y * tiles_x, q.shape[0] * q.shape[3]


def _sizes(q: Tensor) -> tuple[int, int, int]:
    """Heads, height and width, as the kernels ask for them."""
    return q.shape[3], q.shape[1], q.shape[2]


@operator('neighborhood_attention')
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    kernel_size: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention, and the sums of exponentials as logarithms to base 2.

    Args:
        q: (B, H, W, heads, d).
        k: As `q`.
        v: As `q`.
        table: (heads, 2K - 1, 2K - 1), float32.
        kernel_size: K.
        scale: Factor on the scores.

    Returns:
        Output (B, H, W, heads, d) and sums (B, heads, H, W), float32.
    """
    from .kernels.neighborhood import forward_kernel

    table = table.contiguous()
    out, lse = _empty(q, k, v, table, kernel_size, scale)
    constants = _constants(q.shape[-1], kernel_size)
    with on_device(q):
        forward_kernel[_grid(q, constants)](
            q, k, v, table, out, lse, *_strides(q, k, v, out),
            scale, *_sizes(q), **constants,
        )  # fmt: skip
    return out, lse


@operator('neighborhood_attention_backward')
def _attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    out: Tensor,
    lse: Tensor,
    kernel_size: int,
    scale: float,
    needs_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the table, the last zeros if not needed."""
    from .kernels import neighborhood as kernels

    table = table.contiguous()
    batch, heads = q.shape[0], q.shape[3]
    constants = _constants(q.shape[-1], kernel_size)
    grid = _grid(q, constants)
    delta = torch.empty_like(lse)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    with on_device(q):
        kernels.query_gradient_kernel[grid](
            q, k, v, table, out, lse, grad, delta, dq,
            *_strides(q, k, v, out, grad, dq),
            scale, *_sizes(q), **constants,
        )  # fmt: skip
        kernels.key_gradient_kernel[grid](
            q, k, v, table, lse, grad, delta, dk, dv,
            *_strides(q, k, v, grad, dk, dv),
            scale, *_sizes(q), **constants,
        )  # fmt: skip
        if not needs_table:
            return dq, dk, dv, torch.zeros_like(table)
        dtable = table.new_zeros(batch, heads, grid[0], *table.shape[1:])
        del constants['BLOCK'], constants['PRECISION']
        kernels.table_gradient_kernel[grid](
            q, k, v, table, lse, grad, delta, dtable,
            *_strides(q, k, v, grad), scale, *_sizes(q), **constants,
        )  # fmt: skip
    return dq, dk, dv, dtable.sum((0, 2))


def _empty(q, k, v, table, kernel_size, scale):
    """What :func:`_attention` returns, not yet filled."""
    batch, height, width, heads, _ = q.shape
    lse = q.new_empty(batch, heads, height, width, dtype=torch.float32)
    return q.new_empty(q.shape), lse


def _empty_backward(grad, q, k, v, table, *_):
    """What :func:`_attention_backward` returns, not yet filled."""
    return tuple(x.new_empty(x.shape) for x in (q, k, v, table))


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.kernel_size, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(backward, ctx, grad, _):
    *gradients, dtable = backward(
        grad,
        *ctx.saved_tensors,
        ctx.kernel_size,
        ctx.scale,
        ctx.needs_input_grad[3],
    )
    return *gradients, dtable, None, None


connect(
    _attention,
    _attention_backward,
    empty=_empty,
    empty_backward=_empty_backward,
    save=_save,
    differentiate=_differentiate,
)
