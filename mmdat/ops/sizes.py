# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Arithmetic of sizes that may be symbols.

Sizes are tensors while TorchScript traces, and symbols in ``torch.export``. If
Python branches on a size or takes the larger of two, the graph is right only
for the sizes of the example. These functions do not branch on symbols.
"""

import torch
import torch.nn.functional as F
from mmengine.utils import digit_version
from torch import Tensor

from .custom_op import is_compiling, is_exporting

# Before, torch.compile cannot trace the question what a symbol may be.
_SYMBOLS_ANSWER = digit_version(torch.__version__) >= digit_version('2.9')


def at_least(n: int, least: int) -> int:
    """Returns ``max(n, least)``; for a traced size, as a graph operation.

    Python's max would fix one of the two for all sizes.
    """
    if isinstance(n, torch.Tensor):
        return n.clamp(min=least)
    return max(n, least) if type(n) is int else torch.sym_max(n, least)


def at_most(n: int, most: int) -> int:
    """Returns ``min(n, most)``, see ``at_least``."""
    if isinstance(n, torch.Tensor):
        return n.clamp(max=most)
    return min(n, most) if type(n) is int else torch.sym_min(n, most)


def ceil_div(n: int, divisor: int) -> int:
    """Returns ``ceil(n / divisor)`` of whole numbers of at least 0.

    It does not divide negative numbers, which ONNX rounds the other way.
    """
    return (n + divisor - 1) // divisor


def is_needed(padding: int) -> bool:
    """Returns whether to pad; true if the padding depends on the input.

    Otherwise the graph would be right only for sizes without padding.
    """
    if type(padding) is int and is_compiling() and _SYMBOLS_ANSWER:
        # A symbol has the type int while torch.compile traces.
        from torch.fx.experimental import symbolic_shapes

        return not symbolic_shapes.statically_known_true(padding == 0)
    return type(padding) is not int or padding != 0


def is_known(*sizes: int) -> bool:
    """Returns whether these sizes are numbers, so that Python may branch."""
    return all(type(n) is int for n in sizes)


def merge(x: Tensor) -> Tensor:
    """Maps (B, g, ...) to (B g, ...), without a guard on the other sizes."""
    return x.squeeze(1) if x.shape[1] == 1 else x.flatten(0, 1)


def unflatten(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """Returns ``x.unflatten(dim, sizes)`` with dynamic other sizes.

    The tracing ONNX exporter treats the other sizes of an unflattened tensor
    as constants.
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
    """Returns the top left of a map (B, H', W', ...).

    If a compiler cannot exclude that pixels are cut off, it gets a copy, which
    it fuses with the next operation. For a view it would need a guard on
    whether the view is contiguous, which depends on the padding.
    """
    cut = x.shape[1] - height, x.shape[2] - width
    for dim, n in ((1, height), (2, width)):
        if isinstance(n, torch.SymInt):  # slices branch on it
            x = x.index_select(dim, torch.arange(n, device=x.device))
        else:
            x = x.narrow(dim, 0, n)
    if is_compiling() and not is_exporting() and any(map(is_needed, cut)):
        return x.clone(memory_format=torch.contiguous_format)
    return x
