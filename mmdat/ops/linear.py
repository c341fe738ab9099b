# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A linear layer on a map, by the faster product where there is a choice."""

import torch
from torch import Tensor

from .backends import pieces, products


def declines(x: Tensor, weight: Tensor) -> str | None:
    """Why :func:`linear` cannot run or should not, or None."""
    if torch.is_grad_enabled():
        return 'it has no backward pass.'
    return pieces.declines(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        Tensor (..., C').
    """
    rows = products.projection(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))
