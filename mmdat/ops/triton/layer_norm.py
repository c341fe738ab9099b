# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A LayerNorm that casts its output, in one Triton kernel.

Under autocast a LayerNorm writes float32 and the next layer casts it, so the
map is written and read once more. Tested in Triton's interpreter and compiled
for GPUs; not yet timed on a GPU.
"""

import torch
from torch import Tensor

from ..custom_op import (
    gradients_like,
    is_transformed,
    operator,
    register_backward,
)
from . import common as triton_common
from .common import ceil_div, on_device, widened

# Elements of a block, and most channels that fit into a block.
BLOCK_ELEMENTS = 2048
MAX_CHANNELS = 8192


def not_supported(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> str | None:
    """Returns why ``layer_norm`` cannot run here, or None."""
    reason = triton_common.declines(x)
    reason = reason or triton_common.declines_type(x, dtype)
    if reason := reason or triton_common.declines_shape(x, 0, weight, bias):
        return reason
    if is_transformed():
        return 'The kernel has first derivatives in reverse mode only.'
    if not weight.dtype == bias.dtype == torch.float32:
        return 'Weight and bias must be float32.'
    if x.shape[-1] > MAX_CHANNELS:
        return f'At most {MAX_CHANNELS} channels; got {x.shape[-1]}.'
    return None


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Applies LayerNorm over the last axis of `x`; the output has `dtype`."""
    return _layer_norm(x, weight, bias, eps, dtype)[0]


@operator('layer_norm')
def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output and, per row, mean and 1 / standard deviation."""
    from .layer_norm_kernel import forward_kernel

    x = x.contiguous()
    out, mean, rstd = _fake(x, weight, bias, eps, dtype)
    channels = x.shape[-1]
    rows, wide = mean.numel(), widened(channels)
    block = max(BLOCK_ELEMENTS // wide, 1)
    with on_device(x):
        if rows:
            forward_kernel[(ceil_div(rows, block),)](
                x, weight.contiguous(), bias.contiguous(), out, mean, rstd,
                rows, eps, CHANNELS=channels, WIDE=wide, BLOCK=block,
                num_warps=4,
            )  # fmt: skip
    return out, mean, rstd


@operator('layer_norm_backward')
def _layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes gradients of map, weight and bias; zeros if not needed."""
    needs = [needs_x, needs_weight, needs_bias]
    found = torch.ops.aten.native_layer_norm_backward(
        grad.float(), x.float(), x.shape[-1:], mean, rstd, weight, bias, needs
    )
    return tuple(
        got.to(like.dtype) if needed else torch.zeros_like(like)
        for got, needed, like in zip(found, needs, (x, weight, bias))
    )


def _fake(x, weight, bias, eps, dtype):
    """Returns empty outputs of the shapes of ``_layer_norm``, for tracing."""
    rows = *x.shape[:-1], 1
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape, dtype=dtype), mean, rstd


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _backward_pass(backward, ctx, grad, *_):
    needs = ctx.needs_input_grad[:3]
    return *backward(grad, *ctx.saved_tensors, *needs), None, None


register_backward(
    _layer_norm,
    _layer_norm_backward,
    fake=_fake,
    fake_backward=gradients_like(3),
    setup_context=_setup_context,
    backward=_backward_pass,
)
