# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The norm before a residual branch and the sum after it."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """A LayerNorm over the channels.

    Attributes:
        weight: (C,).
        bias: (C,).
        eps: Is added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalises (..., C)."""
        return F.layer_norm(x, x.shape[-1:], *self)


# What operators are given instead of a norm.
NO_NORM = None, None, 0.0


def around(
    branch: Callable[[Tensor], Tensor],
    x: Tensor,
    norm: Norm | None,
    residual: bool,
) -> Tensor:
    """What a branch makes of a map, with the norm before and the sum after.

    Args:
        branch: Maps (..., C) to (..., C).
        x: The map (..., C).
        norm: What comes before the branch, if anything.
        residual: Whether `x` is added at the end.

    Returns:
        Map (..., C).
    """
    out = branch(x if norm is None else norm(x))
    return x + out if residual else out
