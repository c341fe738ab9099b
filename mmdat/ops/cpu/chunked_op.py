# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A norm and a branch of a block, computed one chunk of the map at a time.

The values between the layers stay in the cache and never exist as a whole.
Training stores only the map: the backward pass computes each chunk again.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..custom_op import Operator, recompute_in_backward


class Chunk(Protocol):
    """A part of a map (B, H, W, C), and the inputs of its result."""

    def read(self, x: Tensor) -> Tensor:
        """The input of this chunk's result, (..., C)."""
        ...

    def write(self, out: Tensor, result: Tensor) -> None:
        """Writes the result of this chunk to its place."""
        ...

    def read_grad(self, grad: Tensor) -> Tensor:
        """The gradient of the result of this chunk."""
        ...

    def add_grad(self, x_grad: Tensor, grad: Tensor) -> None:
        """Adds the gradient of what ``read`` returned."""
        ...


class ChunkedOp:
    """``branch(norm(x))`` as one function of the map, chunk by chunk.

    Args:
        name: The operator for compilers is ``mmdat::name``.
        chunks: Given the map and the settings, yields its chunks.
        forward: The branch, a function of the normalised rows, their chunk
            and the weights.
        backward: Given the gradient of the result and then what `forward`
            is given, returns the gradients of the rows and of each weight.
            It is explicit, because an operator cannot call autograd.
    """

    def __init__(
        self,
        name: str,
        chunks: Callable[..., Iterator[Chunk]],
        forward: Callable[..., Tensor],
        backward: Callable[..., tuple[Tensor, ...]],
    ) -> None:
        self.chunks = chunks
        self.branch = forward
        self.branch_backward = backward
        names = 'x', 'norm_weight', 'norm_bias'
        names += tuple(inspect.signature(forward).parameters)[2:]
        inputs = ', '.join(f'Tensor {name}' for name in names)
        inputs += ', float eps, int[] settings'
        outputs = ', '.join('Tensor' for _ in names)
        self.operator = Operator(name, self._forward, f'({inputs}) -> Tensor')
        recompute_in_backward(
            self.operator,
            Operator(
                f'{name}_backward',
                self._backward,
                f'(Tensor grad, {inputs}) -> ({outputs})',
            ),
            twice=True,
        )

    def __call__(
        self,
        x: Tensor,
        norm: tuple[Tensor, Tensor, float],
        weights: tuple[Tensor, ...],
        settings: tuple[int, ...] = (),
    ) -> Tensor:
        """Computes the branch.

        Args:
            x: Map (B, H, W, C).
            norm: Weight, bias and epsilon of the LayerNorm before the branch.
            weights: Of the branch.
            settings: Of the chunks.

        Returns:
            Map (B, H, W, C).
        """
        *layer, eps = norm
        return self.operator(x, *layer, *weights, eps, settings)

    def _forward(self, x: Tensor, *args: Any) -> Tensor:
        *tensors, eps, settings = args
        norm, weights = tensors[:2], tensors[2:]
        x = x.contiguous()
        out = torch.empty_like(x)
        for chunk in self.chunks(x, *settings):
            rows = F.layer_norm(chunk.read(x), x.shape[-1:], *norm, eps)
            chunk.write(out, self.branch(rows, chunk, *weights))
        return out

    def _backward(
        self, grad: Tensor, x: Tensor, *args: Any
    ) -> tuple[Tensor, ...]:
        *tensors, eps, settings = args
        norm, weights = tensors[:2], tensors[2:]
        grad, x = grad.contiguous(), x.contiguous()
        x_grad = torch.zeros_like(x)
        sums: tuple[Tensor, ...] = ()
        for chunk in self.chunks(x, *settings):
            read = chunk.read(x)
            layer = x.shape[-1:], *norm, eps
            rows, *moments = torch.native_layer_norm(read, *layer)
            rows_grad, *grads = self.branch_backward(
                chunk.read_grad(grad), rows, chunk, *weights
            )
            read_grad, *norm_grads = torch.ops.aten.native_layer_norm_backward(
                rows_grad, read, layer[0], *moments, *norm, [True] * 3
            )
            chunk.add_grad(x_grad, read_grad)
            grads = *norm_grads, *grads
            if sums:
                for total, more in zip(sums, grads, strict=True):
                    total += more
            else:
                sums = grads
        return x_grad, *sums
