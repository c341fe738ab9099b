# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Small layers of the residual branches, all channels-last."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..ops.custom_op import is_exporting
from ..ops.narrow_weights import narrowed
from ..ops.precision import at_least_float32, autocast_off
from ..ops.sizes import ceil_div, pad
from .scripted.forms import Scriptable
from .symbolic import one_node


def named(**modules: nn.Module) -> nn.Sequential:
    """A sequence of named modules.

    Norms are called norms, so that ``custom_keys={'norm': ...}`` of an
    optimiser's ``paramwise_cfg`` reaches all of them.
    """
    return nn.Sequential(OrderedDict(modules))


def as_parameters_of(module: nn.Module, x: Tensor) -> Tensor:
    """`x` in the floating type that the parameters of a module have.

    float32 if it has none, as layers that were quantised.
    """
    dtype = torch.float32
    for parameter in module.parameters():
        if parameter.is_floating_point():
            dtype = parameter.dtype
            break
    # A copy is made in row-major layout.
    return x.to(dtype, memory_format=torch.contiguous_format)


class LayerScale(nn.Module):
    """A learnt factor per channel on a residual branch (CaiT, eq. 2)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """Scales (..., C)."""
        return x * self.weight


class DropPath(Scriptable, nn.Module):
    """Drops a residual branch for whole samples (stochastic depth).

    Args:
        rate: Probability of dropping; the kept samples are scaled up.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Drops along the first axis, in training only."""
        if not self.training or self.rate == 0:
            return x
        out = x * self.draw(x)
        return out / (1 - self.rate) if self.rate < 1 else out

    def draw(self, x: Tensor) -> Tensor:
        """1 for each sample of `x` (B, ...) to keep and 0 for each to drop."""
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1))
        return keep.bernoulli_(1 - self.rate)

    def extra_repr(self) -> str:
        """Shows the rate."""
        return f'rate={self.rate:.3f}'


class Conv2d(Scriptable, nn.Conv2d):
    """A convolution between channels-last maps, (B, H, W, C).

    The permuted views have the memory format that convolutions know as
    ``torch.channels_last``, so nothing is copied.
    """

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H', W', C')."""
        x = x.permute(0, 3, 1, 2)
        if self._overhangs(x):
            out = self._in_float32(x)
        elif (found := narrowed(self)) is not None:
            out = self._conv_forward(x, *found)
        else:
            out = super().forward(x)
        return out.permute(0, 2, 3, 1)

    def _overhangs(self, x: Tensor) -> bool:
        """Whether a kernel that moves in steps is wider than the map.

        In this case oneDNN's weight gradient in bfloat16 reads memory that was
        never written (seen with PyTorch 2.11).
        """
        return (
            not is_exporting()  # for any size, and without gradients
            and x.device.type == 'cpu'
            and x.shape[3] < self.kernel_size[1]
            and self.stride[1] > 1
        )

    def _in_float32(self, x: Tensor) -> Tensor:
        """The convolution in float32 or wider, also under autocast."""
        with autocast_off(x):
            weight = at_least_float32(self.weight)
            bias = None if self.bias is None else at_least_float32(self.bias)
            out = self._conv_forward(at_least_float32(x), weight, bias)
            return out.to(x.dtype)


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Pads (B, H, W, C) with zeros at the bottom right."""
    height, width = x.shape[1:3]
    below, right = (
        ceil_div(n, divisor) * divisor - n for n in (height, width)
    )
    return pad(x, below, right)


class PatchConv(Conv2d):
    """A convolution whose stride is its kernel, on maps of any size."""

    def __init__(self, in_dim: int, dim: int, size: int, **kwargs) -> None:
        super().__init__(in_dim, dim, size, size, **kwargs)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, ceil(H / s), ceil(W / s), C')."""
        return super().forward(pad_to_multiple(x, self.stride[0]))


def depthwise(dim: int, kernel_size: int, stride: int = 1) -> Conv2d:
    """A depthwise convolution to (B, ceil(H / s), ceil(W / s), C)."""
    if kernel_size == stride:
        return PatchConv(dim, dim, stride, groups=dim)
    padding = kernel_size // 2
    return Conv2d(dim, dim, kernel_size, stride, padding, groups=dim)
