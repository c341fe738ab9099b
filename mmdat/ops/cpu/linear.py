# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Linear layers on a CPU, with the faster matrix product."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..custom_op import operator

# oneDNN's product, if PyTorch has it: it adds the bias and computes the GELU
# while a result is in registers, and is faster on AMD's processors.
_FUSED = (
    getattr(torch.ops.mkldnn, '_linear_pointwise', None)
    if torch.backends.mkldnn.is_available()
    else None
)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False
) -> Tensor:
    """``x @ weight.T + bias``, and GELU if wanted.

    Args:
        x: (n, C).
        weight: (C', C).
        bias: (C',) or None.
        gelu: Whether GELU follows.

    Returns:
        Tensor (n, C').
    """
    if (
        _FUSED is not None
        and x.dtype == torch.float32
        and x.numel()
        and not torch.is_grad_enabled()  # it has no derivative
        # It reads a bias as if its numbers lay side by side.
        and (bias is None or bias.is_contiguous())
    ):
        after = ('gelu', [], 'none') if gelu else ('none', [], '')
        return _FUSED(x, weight, bias, *after)
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


@operator('linear')
def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return product(x, weight, bias)


if _linear.registered is not None:
    _linear.registered.register_fake(
        lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0])
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x @ weight.T + bias``, without gradients.

    Compilers see one operator, because their product can be slower.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',).

    Returns:
        Tensor (..., C').
    """
    rows = _linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))
