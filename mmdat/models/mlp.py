# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The MLP of a block, plain and with a depthwise convolution inside."""

from torch import Tensor, nn

from .layers import depthwise


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
        if self.dwconv is None:
            return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        x = self.drop(self.fc1(x))
        x = self.act(x + self.dwconv(x))
        return self.drop(self.fc2(x))
