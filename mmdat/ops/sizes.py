# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Arithmetic of sizes that may be symbols.

Sizes are tensors while TorchScript traces, and symbols in ``torch.export``.
Where Python decides by one of them, or takes the larger of two, the graph is
right for the sizes it was made with and no others. Nothing here decides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .custom_op import HAS_OPERATORS, is_compiling, is_exporting


def at_least(n: int, least: int) -> int:
    """``max(n, least)``, which of a traced size stays a function of it.

    Sizes are tensors while TorchScript traces and symbols in
    ``torch.export``; Python's max would take one of the two for all sizes.
    """
    if isinstance(n, torch.Tensor):
        return n.clamp(min=least)
    return max(n, least) if type(n) is int else torch.sym_max(n, least)


def at_most(n: int, most: int) -> int:
    """``min(n, most)``, see ``at_least``."""
    if isinstance(n, torch.Tensor):
        return n.clamp(max=most)
    return min(n, most) if type(n) is int else torch.sym_min(n, most)


def ceil_div(n: int, divisor: int) -> int:
    """``ceil(n / divisor)`` of whole numbers of at least 0.

    Of no negative number, whose quotient ONNX rounds the other way.
    """
    return (n + divisor - 1) // divisor


def is_needed(padding: int) -> bool:
    """Whether to pad by this much: always, where it depends on the input.

    A graph for all sizes would otherwise be one for sizes without padding.
    """
    if type(padding) is int and is_compiling() and HAS_OPERATORS:
        # It passes for a number while it stands for one.
        from torch.fx.experimental import symbolic_shapes

        return not symbolic_shapes.statically_known_true(padding == 0)
    return type(padding) is not int or padding != 0


def is_known(*sizes: int) -> bool:
    """Whether Python may decide by these sizes, which are numbers."""
    return all(type(n) is int for n in sizes)


def merge(x: Tensor) -> Tensor:
    """(B, g, ...) to (B g, ...), without asking about the sizes behind."""
    return x.squeeze(1) if x.shape[1] == 1 else x.flatten(0, 1)


def unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """``x.unflatten(dim, sizes)``.

    The exporter to ONNX that traces takes the other sizes of an unflattened
    tensor for constants.
    """
    if not torch.jit.is_tracing():
        return x.unflatten(dim, sizes)
    dim %= x.ndim
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def pad(x: Tensor, below: int, right: int) -> Tensor:
    """Pads a map (B, H, W, ...) with zeros at the bottom right."""
    if is_needed(below) or is_needed(right):
        behind = (0, 0) * (x.ndim - 3)
        return F.pad(x, (*behind, 0, right, 0, below))
    return x


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The top left of a map (B, H', W', ...).

    Compilers get a copy if something may be cut off, which they compute with
    what comes next: of a view they would ask whether it is contiguous, and
    answer it for sizes with and without padding.
    """
    cut = x.shape[1] - height, x.shape[2] - width
    for dim, n in ((1, height), (2, width)):
        if isinstance(n, torch.SymInt):  # slices decide by it
            x = x.index_select(dim, torch.arange(n, device=x.device))
        else:
            x = x.narrow(dim, 0, n)
    if is_compiling() and not is_exporting() and any(map(is_needed, cut)):
        return x.clone(memory_format=torch.contiguous_format)
    return x
