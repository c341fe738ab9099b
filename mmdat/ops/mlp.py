# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The two linear layers of an MLP, and what is kept of them for training."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import mlp_pieces, pieces
from .backends.operators import HAS_OPERATORS, is_watched
from .backends.products import depthwise3x3


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Linear, GELU, linear.

    Args:
        x: (..., C).
        weight1: (hidden, C).
        bias1: (hidden,).
        weight2: (C', hidden).
        bias2: (C',).

    Returns:
        Tensor (..., C').
    """
    if pieces.declines(x, weight1) is None:
        return mlp_pieces.mlp(x, weight1, bias1, weight2, bias2)
    return gelu_linear(F.linear(x, weight1, bias1), weight2, bias2)


def conv_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
) -> Tensor:
    """Linear, x + depthwise 3x3 of x, GELU, linear (DAT++, sec. 4.2).

    Args:
        x: Map (B, H, W, C).
        weight1: (hidden, C).
        bias1: (hidden,).
        weight2: (C', hidden).
        bias2: (C',).
        conv_weight: (hidden, 1, 3, 3).
        conv_bias: (hidden,).

    Returns:
        Map (B, H, W, C').
    """
    weights = weight1, bias1, weight2, bias2, conv_weight, conv_bias
    if pieces.declines(x, weight1) is not None or is_watched():
        return _conv_mlp(x, *weights)
    if torch.is_grad_enabled():
        return _ConvMLP.apply(x, *weights)
    return mlp_pieces.conv_mlp(x, *weights)


def _conv_mlp(
    x: Tensor, *weights: Tensor, rows: slice = slice(None)
) -> Tensor:
    """:func:`conv_mlp` layer by layer, some rows of the result."""
    weight1, bias1, weight2, bias2, conv_weight, conv_bias = weights
    x = F.linear(x, weight1, bias1)
    x = x + depthwise3x3(x, conv_weight, conv_bias)
    return gelu_linear(x[:, rows], weight2, bias2)


class _ConvMLP(torch.autograd.Function):
    """:func:`conv_mlp` that keeps only `x` for the backward pass.

    That makes the hidden maps again, band by band. A band's gradient reaches
    the rows above and below, which are the edges of other bands.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """See the class."""
        ctx.save_for_backward(*tensors)
        return mlp_pieces.conv_mlp(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, *weights = (t.detach() for t in ctx.saved_tensors)
        wanted = ctx.needs_input_grad
        for weight, needs in zip(weights, wanted[1:], strict=True):
            weight.requires_grad_(needs)
        grads = [torch.zeros_like(t) for t in (x, *weights)]
        for band in mlp_pieces.bands(x):
            seen = x[band.images, band.seen].requires_grad_(wanted[0])
            with torch.enable_grad():
                out = _conv_mlp(seen, *weights, rows=band.inner)
            totals = grads[0][band.images, band.seen], *grads[1:]
            leaves = [t for t in (seen, *weights) if t.requires_grad]
            totals = [t for t, needs in zip(totals, wanted) if needs]
            new = torch.autograd.grad(
                out, leaves, grad[band.images, band.rows]
            )
            for total, more in zip(totals, new, strict=True):
                total += more
        return tuple(g if needs else None for g, needs in zip(grads, wanted))


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The second half of :func:`mlp`.

    Where gradients are wanted only `x` is kept, not what follows the GELU.
    """
    if (
        torch.is_grad_enabled()
        and HAS_OPERATORS  # and with them get_autocast_dtype
        # A compiler decides for itself what to keep.
        and not torch.compiler.is_compiling()
    ):
        return _GeluLinear.apply(x, weight, bias)
    return F.linear(F.gelu(x), weight, bias)


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(x))`` that keeps only `x` for the backward pass.

    The hidden map is the largest of a block. To keep it once, before the
    GELU, instead of twice, saves a quarter of the memory of a training step
    for one more GELU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See the class."""
        device = x.device.type
        ctx.autocast = dict(
            device_type=device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
        )
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        x, weight = ctx.saved_tensors
        with torch.autocast(**ctx.autocast):
            flat = grad.flatten(0, -2)
            weight_grad = flat.mT @ F.gelu(x).flatten(0, -2)
            hidden_grad = grad @ weight
        x_grad = torch.ops.aten.gelu_backward(hidden_grad.to(x.dtype), x)
        return x_grad, weight_grad, flat.sum(0)
