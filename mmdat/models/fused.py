# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The seam: replaces consecutive layers by one fast function.

Models call this module before they call their layers. One predicate decides:
every layer has exactly PyTorch's class and the settings that the fast code
computes, and nothing observes, changes, records or transforms the values
between the layers. Otherwise all layers run one by one.

``with fused.disabled():`` or ``MMDAT_FUSED=0`` turns the seam off.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import narrow_weights
from ..ops.cpu.chunked_op import ChunkedOp
from ..ops.cpu.linear import linear
from ..ops.custom_op import is_compiling
from ..ops.dispatch import Backend, passed_over
from ..ops.gelu_linear import gelu_linear
from ..ops.precision import autocast_off, autocast_type
from ..ops.triton import layer_norm as triton_norm
from ..ops.triton import probe
from .layers import Conv2d, DropPath
from .stock import (
    LAYERS,
    PRODUCTS,
    disabled,
    is_enabled,
    is_on_cpu,
    is_stock,
    is_unseen,
    may_fuse,
)

__all__ = [
    'Piece',
    'activate',
    'add',
    'block',
    'disabled',
    'narrow_weights_of',
    'normalize',
    'project',
]


NORM = Backend(
    'triton',
    triton_norm.layer_norm,
    triton_norm.not_supported,
    failure=probe.layer_norm_failure,
)


class Piece(NamedTuple):
    """A branch of a block as one function of its input.

    Attributes:
        op: The function.
        weights: Weights of the function.
        settings: Settings of the function.
    """

    op: ChunkedOp
    weights: tuple[Tensor, ...]
    settings: tuple[int, ...] = ()


def block(block: nn.Module, x: Tensor) -> Tensor | None:
    """Runs a block with its branches as single functions, if possible.

    Args:
        block: A ``mmdat.models.block.Block``.
        x: Map (B, H, W, C).

    Returns:
        Map (B, H, W, C), or None if the layers must run one by one.
    """
    if not (is_enabled() and (is_compiling() or is_on_cpu(x) and may_fuse(x))):
        return None
    for norm, branch, scale in (
        (block.norm1, block.attn, block.layer_scale1),
        (block.norm2, block.mlp, block.layer_scale2),
    ):
        piece = _piece(norm, branch, x)
        if piece is None:
            out = branch(norm(x))
        else:
            layer = norm.weight, norm.bias, norm.eps
            out = piece.op(x, layer, piece.weights, piece.settings)
        fresh = piece is not None and all(
            is_stock(layer, type(layer), x)
            for layer in (scale, block.drop_path)
        )
        x = _sum(x, block.drop_path(scale(out)), fresh)
    return x


def _sum(x: Tensor, out: Tensor, in_place: bool) -> Tensor:
    """Returns ``x + out``; writes to `out` if `in_place`.

    For compilers the pixels are one axis: Inductor lays a sum of (B, H, W, C)
    out as (B, C, H, W), because convolutions use it, and copies it back.
    """
    if not is_compiling():
        return out.add_(x) if in_place else x + out
    both = x.flatten(1, 2) + out.flatten(1, 2)
    return both.unflatten(1, x.shape[1:3])


def _piece(norm: nn.Module, branch: nn.Module, x: Tensor) -> Piece | None:
    """Returns a function for ``branch(norm(x))``, or None."""
    kind = type(branch)
    if kind not in LAYERS or not is_on_cpu(x):
        return None
    layers = [(norm, nn.LayerNorm), (branch, kind)]
    layers += [
        (layer, LAYERS[kind].get(name))
        for name, layer in branch._modules.items()
        if layer is not None
    ]
    if not may_fuse(x, *layers) or norm.normalized_shape != x.shape[-1:]:
        return None
    return branch.as_piece()


def add(x: Tensor, out: Tensor, drop_path: nn.Module) -> Tensor:
    """Returns ``x + drop_path(out)``, computed in one operation."""
    if not (
        type(drop_path) is DropPath
        and drop_path.training
        and 0 < drop_path.rate < 1
        and not is_compiling()  # a compiler fuses them itself
        and is_unseen(x, (drop_path, DropPath))
    ):
        return x + drop_path(out)
    keep = drop_path.draw(out)
    # Add different types directly; autocast would copy the narrower one first.
    with autocast_off(x):
        return torch.addcmul(x, out, keep, value=1 / (1 - drop_path.rate))


def narrow_weights_of(block: nn.Module, x: Tensor) -> AbstractContextManager:
    """Returns a context that casts a block's weights for autocast once.

    Args:
        block: A block whose layers and branches call products by this seam.
        x: Input (B, H, W, C) of the block.
    """
    dtype = autocast_type(x)
    if dtype is None or is_compiling() or not is_unseen(x):
        return nullcontext()
    layers = [block.local_perception]
    for branch in block.children():
        names = PRODUCTS.get(type(branch))
        if names is not None and is_stock(branch, type(branch), x):
            layers += [branch, *(branch._modules.get(name) for name in names)]
    layers = [
        layer
        for layer in dict.fromkeys(layers)
        if type(layer) in (nn.Linear, Conv2d)
        and is_stock(layer, type(layer), x)
        and layer.weight.dtype == layer.bias.dtype == torch.float32
    ]
    if not layers:
        return nullcontext()
    return narrow_weights.holding(narrow_weights.narrow(layers, dtype))


def normalize(norm: nn.Module, branch: nn.Module, x: Tensor) -> Tensor:
    """Returns ``norm(x)``, in the type to which `branch` casts it if known."""
    dtype = autocast_type(x)
    if (
        dtype is None
        or is_compiling()
        or type(branch) not in PRODUCTS
        or not is_unseen(x, (norm, nn.LayerNorm), (branch, type(branch)))
        or norm.normalized_shape != x.shape[-1:]
        or passed_over(NORM, x, norm.weight, norm.bias, dtype)
    ):
        return norm(x)
    return NORM.run(x, norm.weight, norm.bias, norm.eps, dtype)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Applies a linear layer to (..., C), by a faster product if possible."""
    if (found := narrow_weights.narrowed(layer)) is not None:
        return F.linear(x, *found)
    if (
        not torch.is_grad_enabled()
        and is_on_cpu(x)
        and may_fuse(x, (layer, nn.Linear))
    ):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def activate(
    act: nn.Module, drop: nn.Module | None, layer: nn.Module, x: Tensor
) -> Tensor:
    """Applies an activation, dropout and a linear layer.

    For GELU, inactive dropout and a plain layer, training stores only `x`.
    """
    layers = [(act, nn.GELU), (drop, nn.Dropout), (layer, nn.Linear)]
    if drop is None:
        del layers[1]
    if (
        torch.is_grad_enabled()
        and not is_compiling()  # a compiler decides what to store
        and may_fuse(x, *layers)
    ):
        return gelu_linear(x, layer.weight, layer.bias)
    for layer, _ in layers[:-1]:
        x = layer(x)
    return project(layers[-1][0], x)
