# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""GELU and a linear layer that store one map for training, not two."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .custom_op import for_each_gradient


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``linear(gelu(x))`` that stores only `x` for the backward pass.

    The hidden map is the largest of a block. Storing it once, before the GELU,
    saves a quarter of the memory of a training step and costs one more GELU.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',).

    Returns:
        Tensor (..., C').
    """
    return _GeluLinear.apply(x, weight, bias)


class _GeluLinear(torch.autograd.Function):
    """See ``gelu_linear``."""

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
        return _gradients(grad, *ctx.saved_tensors, ctx.autocast)


@for_each_gradient
def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, autocast: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, the weight and the bias."""
    with torch.autocast(**autocast):
        flat = grad.flatten(0, -2)
        weight_grad = flat.mT @ F.gelu(x).flatten(0, -2)
        hidden_grad = grad @ weight
    x_grad = torch.ops.aten.gelu_backward(hidden_grad.to(x.dtype), x)
    return x_grad, weight_grad, flat.sum(0)
