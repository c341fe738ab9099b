# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The MLP of a block, plain and with a depthwise convolution inside."""

from torch import Tensor, nn

from ..ops.cpu import fused_mlp
from .fused import Piece, activate, project
from .layers import Conv2d, depthwise
from .stock import calls_by_the_seam, may_be_one_piece


@calls_by_the_seam('fc1', 'dwconv', 'fc2')
@may_be_one_piece(
    fc1=nn.Linear, dwconv=Conv2d, act=nn.GELU, fc2=nn.Linear, drop=nn.Dropout
)
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
        x = project(self.fc1, x)
        if self.dwconv is None:
            return self.drop(activate(self.act, self.drop, self.fc2, x))
        x = self.drop(x)
        x = x + self.dwconv(x)
        return self.drop(activate(self.act, None, self.fc2, x))

    def as_piece(self) -> Piece:
        """All layers as one function."""
        fc1, conv, fc2 = self.fc1, self.dwconv, self.fc2
        weights = fc1.weight, fc1.bias, fc2.weight, fc2.bias
        if conv is None:
            return Piece(fused_mlp.mlp, weights)
        return Piece(fused_mlp.conv_mlp, (*weights, conv.weight, conv.bias))
