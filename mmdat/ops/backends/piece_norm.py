# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The norm before layers that run in pieces."""

from collections.abc import Sequence

import torch
from torch import Tensor


class PieceNorm:
    """A LayerNorm of one piece after another, and its gradients.

    Does nothing where there are no weights.

    Args:
        weight: (C,) or None.
        bias: (C,) or None.
        eps: Is added to the variance.
    """

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> None:
        self.layer = weight, bias
        self.eps = eps

    def __call__(self, rows: Tensor) -> Tensor:
        """Normalises rows (n, C)."""
        if self.layer[0] is None:
            return rows
        shape = rows.shape[-1:]
        out, *self.moments = torch.native_layer_norm(
            rows, shape, *self.layer, self.eps
        )
        self.rows = rows
        return out

    def start_gradients(self, like: Tensor) -> None:
        """Prepares for :meth:`backward`."""
        # What operators return must be a tensor.
        self.gradients = tuple(
            like.new_empty(0) if t is None else torch.zeros_like(t)
            for t in self.layer
        )

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient of the rows that were normalised last."""
        if self.layer[0] is None:
            return grad
        shape = self.rows.shape[-1:]
        rows_grad, *grads = torch.ops.aten.native_layer_norm_backward(
            grad, self.rows, shape, *self.moments, *self.layer, [True] * 3
        )
        for total, more in zip(self.gradients, grads, strict=True):
            total += more
        return rows_grad


def of_inputs(
    gradients: Sequence[Tensor], layer: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """The gradients, of which the last two are None where the norm is."""
    return gradients if layer[0] is not None else (*gradients[:-2], None, None)
