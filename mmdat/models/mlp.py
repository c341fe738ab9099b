# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The MLP of a block, plain and with a depthwise convolution inside."""

from torch import Tensor, nn

from ..ops.mlp import conv_mlp, gelu_linear, mlp
from ..ops.norm import Norm, around
from .layers import are_plain, depthwise, does_nothing


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

    def forward(
        self, x: Tensor, norm: Norm | None = None, residual: bool = False
    ) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C), see `ops.norm.around`."""
        fc1, conv, act, fc2 = self.fc1, self.dwconv, self.act, self.fc2
        if self._is_plain(fc1, act, fc2):
            weights = fc1.weight, fc1.bias, fc2.weight, fc2.bias
            if conv is None:
                return mlp(x, *weights, norm, residual)
            if self._is_plain(conv):
                weights += conv.weight, conv.bias
                return conv_mlp(x, *weights, norm, residual)
        return around(self._layer_by_layer, x, norm, residual)

    def _layer_by_layer(self, x: Tensor) -> Tensor:
        conv, act, fc2 = self.dwconv, self.act, self.fc2
        x = self.fc1(x)
        if conv is not None:
            x = self.drop(x)
            x = x + conv(x)
        if self._is_plain(act, fc2):
            return gelu_linear(x, fc2.weight, fc2.bias)
        x = act(x)
        if conv is None:
            x = self.drop(x)
        return self.drop(fc2(x))

    def _is_plain(self, *layers: nn.Module) -> bool:
        """Whether these run as one, without dropout between."""
        return does_nothing(self.drop) and are_plain(*layers)
