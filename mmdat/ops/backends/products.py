# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Products of the layers of an MLP, channels last."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .operators import operator

# oneDNN's product, where PyTorch has it: it adds the bias and takes the GELU
# while a result is in registers, and is the faster one on AMD's processors.
_FUSED = (
    getattr(torch.ops.mkldnn, '_linear_pointwise', None)
    if torch.backends.mkldnn.is_available()
    else None
)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """``x @ weight.T + bias``, and GELU if wanted; without gradients.

    Args:
        x: (n, C).
        weight: (C', C).
        bias: (C',) or None.
        gelu: Whether GELU follows.

    Returns:
        Tensor (n, C').
    """
    if _FUSED is not None and x.dtype == torch.float32 and x.numel():
        after = ('gelu', [], 'none') if gelu else ('none', [], '')
        return _FUSED(x, weight, bias, *after)
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


@operator('linear')
def projection(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`linear` that compilers leave whole: theirs can be slower."""
    return linear(x, weight, bias)


if projection.registered is not None:
    projection.registered.register_fake(
        lambda x, weight, bias: x.new_empty(len(x), len(weight))
    )


def depthwise3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution of each channel by itself, zeros outside the map.

    Args:
        x: Map (B, H, W, C).
        weight: (C, 1, 3, 3).
        bias: (C,).

    Returns:
        Map (B, H, W, C).
    """
    out = F.conv2d(
        x.permute(0, 3, 1, 2),
        weight,
        bias,
        padding=1,
        groups=weight.shape[0],
    )
    return out.permute(0, 2, 3, 1)
