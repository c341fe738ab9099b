# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A linear layer on a map, by the faster product where there is a choice."""

import torch
from torch import Tensor

from .backends import pieces, products
from .backends.operators import is_watched


def declines(x: Tensor, weight: Tensor) -> str | None:
    """Why :func:`linear` cannot run or should not, or None."""
    if torch.is_grad_enabled():
        return 'it has no backward pass.'
    reason = pieces.declines(x, weight)
    if reason is None and is_watched():  # old versions of PyTorch cannot ask
        return 'who watches should see a layer.'
    return reason


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        Tensor (..., C').
    """
    rows = products.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))
