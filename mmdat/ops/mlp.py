# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The two linear layers of an MLP, and what is kept of them for training."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import mlp_pieces, pieces
from .backends.operators import HAS_OPERATORS, is_watched
from .backends.products import depthwise3x3
from .norm import NO_NORM, Norm, around


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm: Norm | None = None,
    residual: bool = False,
) -> Tensor:
    """(Norm,) linear, GELU, linear (, added to `x`).

    Args:
        x: (..., C).
        weight1: (hidden, C).
        bias1: (hidden,).
        weight2: (C', hidden).
        bias2: (C',).
        norm: What comes before.
        residual: Whether `x` is added at the end.

    Returns:
        Tensor (..., C').
    """
    if pieces.declines(x, weight1) is None:
        return mlp_pieces.mlp(
            x,
            weight1,
            bias1,
            weight2,
            bias2,
            *(norm or NO_NORM),
            residual,
        )

    def layers(x: Tensor) -> Tensor:
        return gelu_linear(F.linear(x, weight1, bias1), weight2, bias2)

    return around(layers, x, norm, residual)


def conv_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    norm: Norm | None = None,
    residual: bool = False,
) -> Tensor:
    """As :func:`mlp`, x + depthwise 3x3 of x inside (DAT++, sec. 4.2).

    Args:
        x: Map (B, H, W, C).
        weight1: (hidden, C).
        bias1: (hidden,).
        weight2: (C', hidden).
        bias2: (C',).
        conv_weight: (hidden, 1, 3, 3).
        conv_bias: (hidden,).
        norm: What comes before.
        residual: Whether `x` is added at the end.

    Returns:
        Map (B, H, W, C').
    """
    weights = weight1, bias1, weight2, bias2, conv_weight, conv_bias
    if pieces.declines(x, weight1) is not None or is_watched():
        return _conv_mlp(x, weights, norm, residual)
    if torch.is_grad_enabled():
        *layer, eps = norm or (0.0,)
        return _ConvMLP.apply(eps, residual, x, *weights, *layer)
    return mlp_pieces.conv_mlp(x, *weights, norm, residual)


def _conv_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    norm: Norm | None,
    residual: bool,
    rows: slice = slice(None),
) -> Tensor:
    """:func:`conv_mlp` layer by layer, some rows of the result."""
    weight1, bias1, weight2, bias2, conv_weight, conv_bias = weights
    hidden = F.linear(x if norm is None else norm(x), weight1, bias1)
    hidden = hidden + depthwise3x3(hidden, conv_weight, conv_bias)
    out = gelu_linear(hidden[:, rows], weight2, bias2)
    return x[:, rows] + out if residual else out


class _ConvMLP(torch.autograd.Function):
    """:func:`conv_mlp` that keeps only `x` for the backward pass.

    That makes the hidden maps again, band by band. A band's gradient reaches
    the rows above and below, which are the edges of other bands.
    """

    @staticmethod
    def forward(
        ctx: Any, eps: float, residual: bool, *tensors: Tensor
    ) -> Tensor:
        """See the class."""
        ctx.eps, ctx.residual = eps, residual
        ctx.save_for_backward(*tensors)
        x, *weights = tensors
        weights, norm = _split(weights, eps)
        return mlp_pieces.conv_mlp(x, *weights, norm, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        x, *leaves = (t.detach() for t in ctx.saved_tensors)
        wanted = ctx.needs_input_grad[2:]
        for leaf, needs in zip(leaves, wanted[1:], strict=True):
            leaf.requires_grad_(needs)
        weights, norm = _split(leaves, ctx.eps)
        grads = [torch.zeros_like(t) for t in (x, *leaves)]
        for band in mlp_pieces.bands(x):
            seen = x[band.images, band.seen].requires_grad_(wanted[0])
            with torch.enable_grad():
                out = _conv_mlp(seen, weights, norm, ctx.residual, band.inner)
            totals = grads[0][band.images, band.seen], *grads[1:]
            totals = [t for t, needs in zip(totals, wanted) if needs]
            new = torch.autograd.grad(
                out,
                [t for t in (seen, *leaves) if t.requires_grad],
                grad[band.images, band.rows],
            )
            for total, more in zip(totals, new, strict=True):
                total += more
        grads = (g if needs else None for g, needs in zip(grads, wanted))
        return None, None, *grads


def _split(
    weights: Sequence[Tensor], eps: float
) -> tuple[Sequence[Tensor], Norm | None]:
    """The weights of the layers, and the norm if there are more."""
    layer = weights[6:]
    return weights[:6], Norm(*layer, eps) if layer else None


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
