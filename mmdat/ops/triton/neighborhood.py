# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Neighbourhood attention fused into Triton kernels.

A program computes the scores of a tile of queries with the union of their
neighbourhoods, one tile of keys at a time, in registers. Tested in Triton's
interpreter and compiled for GPUs; not yet timed on a GPU.
"""

import torch
from torch import Tensor

from ..custom_op import gradients_like, operator, register_backward
from . import common as triton_common
from .common import dot_precision, on_device, strides, widened, with_rows

# Rows and columns of a tile of queries and of a tile of keys, by the padded
# channels of a head. With K = 7, a tile of 8 x 8 queries has 14 x 14 keys, so
# each key is read about 3 times instead of 49.
TILES = {
    16: (8, 8, 2, 16),
    32: (8, 8, 2, 16),
    64: (4, 8, 4, 8),
    128: (4, 8, 4, 4),
}
LAUNCH = dict(num_warps=4, num_stages=1)


def not_supported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> str | None:
    """Returns why ``neighborhood_attention`` cannot run here, or None."""
    if bias_table.dtype == torch.float64:
        return 'The bias table must not be float64.'
    return triton_common.not_supported(
        q, k, v, q.shape[3], dropout, bias_table
    )


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.neighborhood_attention``."""
    out, _ = _attention(q, k, v, bias_table.float(), kernel_size, scale)
    return out


def _constants(dim: int, kernel_size: int) -> dict:
    """Returns the constants of the kernels."""
    wide = widened(dim)
    tile_y, tile_x, step_y, step_x = TILES[wide]
    return dict(
        K=kernel_size,
        DIM=dim,
        WIDE=wide,
        TILE_Y=tile_y,
        TILE_X=tile_x,
        STEP_Y=step_y,
        STEP_X=step_x,
        PRECISION=dot_precision(wide),
        **LAUNCH,
    )


def _grid(q: Tensor, constants: dict) -> tuple[int, int]:
    """Returns the numbers of tiles of a map and of pairs (image, head)."""
    tiles_y = -(-q.shape[1] // constants['TILE_Y'])
    tiles_x = -(-q.shape[2] // constants['TILE_X'])
    return tiles_y * tiles_x, q.shape[0] * q.shape[3]


def _sizes(q: Tensor) -> tuple[int, int, int]:
    """Returns heads, height and width, as kernel arguments."""
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
    """Computes attention, and log2 of the sums of exponentials.

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
    from .kernel_parts import LOG2_E
    from .neighborhood_kernels import forward_kernel

    table = (table * LOG2_E.value).contiguous()
    out, lse = _fake(q, k, v, table, kernel_size, scale)
    with on_device(q):
        constants = _constants(q.shape[-1], kernel_size)
        forward_kernel[_grid(q, constants)](
            q, k, v, table, out, lse, *strides(q, k, v, out),
            scale * LOG2_E.value, *_sizes(q), **constants,
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
    """Computes gradients of q, k, v and the table (zeros if not needed)."""
    from . import neighborhood_kernels as kernels
    from .kernel_parts import LOG2_E

    grad = with_rows(grad)
    table = (table * LOG2_E.value).contiguous()
    scale = scale * LOG2_E.value
    batch, heads = q.shape[0], q.shape[3]
    delta = torch.empty_like(lse)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    with on_device(q):
        constants = _constants(q.shape[-1], kernel_size)
        grid = _grid(q, constants)
        tiles = grid[0] if needs_table else 0
        dtable = table.new_empty(batch, heads, tiles, *table.shape[1:])
        kernels.query_gradient_kernel[grid](
            q, k, v, table, out, lse, grad, delta, dq,
            *strides(q, k, v, out, grad, dq),
            scale, *_sizes(q), **constants,
        )  # fmt: skip
        kernels.key_gradient_kernel[grid](
            q, k, v, table, lse, grad, delta, dk, dv, dtable,
            *strides(q, k, v, grad, dk, dv),
            scale, *_sizes(q), **constants,
            SIDE=widened(table.shape[-1]), NEEDS_TABLE=needs_table,
        )  # fmt: skip
    return dq, dk, dv, dtable.sum((0, 2))


def _fake(q, k, v, table, kernel_size, scale):
    """Returns empty outputs of the shapes of ``_attention``, for tracing."""
    batch, height, width, heads, _ = q.shape
    lse = q.new_empty(batch, heads, height, width, dtype=torch.float32)
    return q.new_empty(q.shape), lse


def _backward_pass(backward, ctx, grad, _):
    *gradients, dtable = backward(
        grad,
        *ctx.saved_tensors,
        *ctx.settings,
        ctx.needs_input_grad[3],
    )
    return *gradients, dtable, None, None


register_backward(
    _attention,
    _attention_backward,
    fake=_fake,
    fake_backward=gradients_like(4),
    backward=_backward_pass,
)
