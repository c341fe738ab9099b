# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A linear layer on maps, by the faster product where there is a choice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import pieces, products
from .backends.operators import is_watched


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: (..., C).
        weight: (C', C).
        bias: (C',) or None.

    Returns:
        Tensor (..., C').
    """
    if (
        torch.is_grad_enabled()  # which the faster one has no backward for
        or is_watched()
        or pieces.declines(x, weight) is not None
    ):
        return F.linear(x, weight, bias)
    rows = products.linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], len(weight))
