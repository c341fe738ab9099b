# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The MLP of a block, plain and with a depthwise convolution inside."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import depthwise


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


class MLP(nn.Module):
    """Linear, (x + depthwise 3x3 of x,) GELU, Linear.

    Args:
        dim: Channels in and out.
        hidden_dim: Channels between.
        conv: Whether the hidden map goes through the depthwise convolution
            (DAT++, sec. 4.2).
        drop_rate: Dropout after each linear layer.
    """

    def __init__(
        self, dim: int, hidden_dim: int, conv: bool, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = depthwise(hidden_dim, 3) if conv else None
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        x = self.fc1(x)
        if self.dwconv is not None:
            x = self.drop(x)
            x = x + self.dwconv(x)
        if self._keeps_less():
            return _GeluLinear.apply(x, self.fc2.weight, self.fc2.bias)
        x = self.act(x)
        if self.dwconv is None:
            x = self.drop(x)
        return self.drop(self.fc2(x))

    def _keeps_less(self) -> bool:
        """Whether :class:`_GeluLinear` does the same.

        A compiler decides for itself what to keep, and hooks on the layers
        want them to be called.
        """
        return (
            torch.is_grad_enabled()
            and hasattr(torch, 'get_autocast_dtype')  # since PyTorch 2.4
            and not torch.compiler.is_compiling()
            and not (self.training and self.drop.p)
            and type(self.fc2) is nn.Linear
            and not (self.fc2._forward_hooks or self.fc2._forward_pre_hooks)
            and not (self.act._forward_hooks or self.act._forward_pre_hooks)
        )
