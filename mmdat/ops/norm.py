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


def around(
    branch: Callable[[Tensor], Tensor],
    x: Tensor,
    norm: Norm | None,
    residual: bool,
) -> Tensor:
    """What a branch makes of (..., C), with norm and sum as asked for."""
    out = branch(x if norm is None else norm(x))
    return x + out if residual else out
