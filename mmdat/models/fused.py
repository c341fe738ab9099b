# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The seam: where consecutive layers are computed together.

Models ask here before they call their layers. One predicate decides: every
layer has exactly PyTorch's class and the settings that the fast code computes,
and nothing observes, changes, records or transforms the values between the
layers. Otherwise all layers run one by one.

``with fused.disabled():`` or ``MMDAT_FUSED=0`` turns everything here off.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..ops.cpu.chunked_op import ChunkedOp
from ..ops.cpu.linear import linear
from ..ops.custom_op import (
    HAS_OPERATORS,
    is_compiling,
    is_exporting,
    is_recorded,
    is_transformed,
)
from ..ops.gelu_linear import gelu_linear
from ..ops.precision import autocast_off
from .layers import Conv2d, DropPath, LayerScale

ENVIRONMENT_VARIABLE = 'MMDAT_FUSED'

_enabled = True


@contextmanager
def disabled() -> Iterator[None]:
    """A context in which all layers of all models run one by one."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


class Piece(NamedTuple):
    """A branch of a block as one function of its input.

    Attributes:
        op: The function.
        weights: Its weights.
        settings: Its settings.
    """

    op: ChunkedOp
    weights: tuple[Tensor, ...]
    settings: tuple[int, ...] = ()


def block(block: nn.Module, x: Tensor) -> Tensor | None:
    """Runs a block in which branches may be one piece, or for a compiler.

    Args:
        block: A ``mmdat.models.block.Block``.
        x: Map (B, H, W, C).

    Returns:
        Map (B, H, W, C), or None if all layers have to run as they are.
    """
    if not (_enabled and (is_compiling() or _is_on_cpu(x) and _may_fuse(x))):
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
            _is_stock(layer, type(layer), x)
            for layer in (scale, block.drop_path)
        )
        x = _sum(x, block.drop_path(scale(out)), fresh)
    return x


def _sum(x: Tensor, out: Tensor, in_place: bool) -> Tensor:
    """``x + out``, in place in `out` if it is not used elsewhere.

    Compilers see the pixels along one axis: Inductor takes a sum of
    (B, H, W, C) for (B, C, H, W), as convolutions have it, and copies it to
    lay channels last.
    """
    if not is_compiling():
        return out.add_(x) if in_place else x + out
    both = x.flatten(1, 2) + out.flatten(1, 2)
    return both.unflatten(1, x.shape[1:3])


def _piece(norm: nn.Module, branch: nn.Module, x: Tensor) -> Piece | None:
    """What may run instead of ``branch(norm(x))``, if anything."""
    kind = type(branch)
    if kind not in _LAYERS or not _is_on_cpu(x):
        return None
    layers = [(norm, nn.LayerNorm), (branch, kind)]
    layers += [
        (layer, _LAYERS[kind].get(name))
        for name, layer in branch._modules.items()
        if layer is not None
    ]
    if not _may_fuse(x, *layers) or norm.normalized_shape != x.shape[-1:]:
        return None
    return branch.as_piece()


def add(x: Tensor, out: Tensor, drop_path: nn.Module) -> Tensor:
    """``x + drop_path(out)``, the dropping and the sum in one operation."""
    if not (
        type(drop_path) is DropPath
        and drop_path.training
        and 0 < drop_path.rate < 1
        and not is_compiling()  # puts them together itself
        and _is_unseen(x, (drop_path, DropPath))
    ):
        return x + drop_path(out)
    keep = drop_path.draw(out)
    # Of two types, as a sum; autocast would copy the narrower one first.
    with autocast_off(x):
        return torch.addcmul(x, out, keep, value=1 / (1 - drop_path.rate))


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """Calls a linear layer on (..., C), or the faster product on a CPU."""
    if (
        not torch.is_grad_enabled()
        and _is_on_cpu(x)
        and _may_fuse(x, (layer, nn.Linear))
    ):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def activate(
    act: nn.Module, drop: nn.Module | None, layer: nn.Module, x: Tensor
) -> Tensor:
    """Calls an activation, dropout and a linear layer.

    Where they are GELU, idle and plain, training keeps `x` alone of them.
    """
    layers = [(act, nn.GELU), (drop, nn.Dropout), (layer, nn.Linear)]
    if drop is None:
        del layers[1]
    if (
        torch.is_grad_enabled()
        and not is_compiling()  # decides what to keep itself
        and _may_fuse(x, *layers)
    ):
        return gelu_linear(x, layer.weight, layer.bias)
    for layer, _ in layers:
        x = layer(x)
    return x


# --------------------------------------------------------------- the predicate


def _is_on_cpu(x: Tensor) -> bool:
    """Whether `x` is what the code for CPUs computes with."""
    return (
        HAS_OPERATORS  # and with them this form of is_autocast_enabled
        and x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled('cpu')
    )


def _may_fuse(
    x: Tensor, *layers: tuple[nn.Module, type[nn.Module] | None]
) -> bool:
    """Whether fusing these layers cannot be observed.

    Args:
        x: What goes into them.
        *layers: Each with the class that it has to have.
    """
    return not is_recorded() and _is_unseen(x, *layers)


def _is_unseen(
    x: Tensor, *layers: tuple[nn.Module, type[nn.Module] | None]
) -> bool:
    """As ``_may_fuse``, of operations that may be counted or recorded."""
    return (
        _enabled
        and os.environ.get(ENVIRONMENT_VARIABLE) != '0'
        and HAS_OPERATORS
        and type(x) is Tensor
        and x.device.type != 'meta'
        and not is_exporting()
        and x.numel() > 0
        and not is_transformed()
        and not _has_global_hooks()
        and not _is_patched()
        and all(_is_stock(layer, kind, x) for layer, kind in layers)
    )


def _has_global_hooks() -> bool:
    return bool(
        torch_module._global_forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_backward_pre_hooks
        or torch_module._global_backward_hooks
    )


# What counters and quantisers replace to see or change all layers at once.
_FUNCTIONS = {
    (place, name): getattr(place, name)
    for place, names in (
        (F, ('linear', 'layer_norm', 'gelu', 'conv2d', 'dropout')),
        (F, ('scaled_dot_product_attention',)),
        (nn.Module, ('__call__', '_call_impl')),
    )
    for name in names
}


def _is_patched() -> bool:
    return not is_compiling() and any(
        getattr(place, name) is not function
        for (place, name), function in _FUNCTIONS.items()
    )


def _original(kind: type[nn.Module]) -> object:
    """The forward that a class came with, None if it has another by now."""
    home = getattr(kind.forward, '__globals__', {}).get('__name__')
    return kind.forward if home == kind.__module__ else None


_FORWARDS = {
    kind: _original(kind)
    for kind in (
        *(nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Conv2d),
        nn.Identity,
    )
}


_FORWARDS.update((k, k.forward) for k in (Conv2d, LayerScale, DropPath))
# The layers of branches that may be one piece, by their names.
_LAYERS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {}


def may_be_one_piece(**layers: type[nn.Module]) -> Callable[[type], type]:
    """Class decorator for a branch that has a method `as_piece`.

    That returns a ``Piece``, or None if a setting forbids it; it is
    called only if the branch has exactly these `layers`, all plain.
    """

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        _FORWARDS[kind] = kind.forward
        _LAYERS[kind] = layers
        return kind

    return register


def _is_stock(
    layer: nn.Module, kind: type[nn.Module] | None, x: Tensor
) -> bool:
    """Whether a layer is of exactly its stock class, without observers."""
    return (
        type(layer) is kind
        and kind.forward is _FORWARDS.get(kind)
        and 'forward' not in vars(layer)
        and not (
            layer._forward_pre_hooks
            or layer._forward_hooks
            or layer._backward_pre_hooks
            or layer._backward_hooks
        )
        and _has_stock_settings(layer, x)
    )


def _has_stock_settings(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer has the settings that the fast code computes."""
    kind = type(layer)
    if kind is nn.GELU:
        return layer.approximate == 'none'
    if kind is nn.Dropout:
        return not (layer.training and layer.p)
    if kind is Conv2d and not (
        nn.Conv2d.forward is _FORWARDS[nn.Conv2d]
        and layer.kernel_size == (3, 3)
        and layer.padding == (1, 1)
        and layer.padding_mode == 'zeros'
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == layer.in_channels == layer.out_channels
    ):
        return False
    if kind in (nn.Linear, nn.LayerNorm, Conv2d):
        return all(_is_like(t, x) for t in (layer.weight, layer.bias))
    return all(_is_like(t, x) for t in layer._parameters.values())


def _is_like(parameter: Tensor | None, x: Tensor) -> bool:
    """Whether a parameter is there, and a plain tensor as `x` is."""
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and parameter.device == x.device
        and parameter.layout == torch.strided
        and (
            parameter.dtype == x.dtype
            or torch.is_autocast_enabled(x.device.type)
        )
    )
