# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The predicate of the seam: whether fast code may replace layers.

``mmdat.models.fused`` calls it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..ops.custom_op import (
    HAS_OPERATORS,
    is_compiling,
    is_exporting,
    is_recorded,
    is_transformed,
)
from .layers import Conv2d, DropPath, LayerScale

ENVIRONMENT_VARIABLE = 'MMDAT_FUSED'

# Subclasses of Tensor may override operations.
PLAIN: tuple[type[Tensor], ...] = (Tensor,)

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


def is_enabled() -> bool:
    """Returns whether the seam is on in this context."""
    return _enabled


def is_on_cpu(x: Tensor) -> bool:
    """Returns whether the code for CPUs supports `x`."""
    return (
        HAS_OPERATORS  # these versions also have is_autocast_enabled(device)
        and x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled('cpu')
    )


def may_fuse(
    x: Tensor, *layers: tuple[nn.Module, type[nn.Module] | None]
) -> bool:
    """Returns whether one function gives the same result as these layers.

    Args:
        x: Input of the layers.
        *layers: Pairs of a layer and its required class.
    """
    return not is_recorded() and is_unseen(x, *layers)


def is_unseen(
    x: Tensor, *layers: tuple[nn.Module, type[nn.Module] | None]
) -> bool:
    """Does the same as ``may_fuse``, but allows modes that record."""
    possible = (
        _enabled
        and os.environ.get(ENVIRONMENT_VARIABLE) != '0'
        and HAS_OPERATORS
        and type(x) in PLAIN
        and x.device.type != 'meta'
        and not is_exporting()
        and x.numel() > 0
        and not is_transformed()
        and not _has_global_hooks()
        and not _is_patched()
    )
    # No all(...), which torch.compile of PyTorch 2.7 cannot trace.
    for layer, kind in layers:
        possible = possible and is_stock(layer, kind, x)
    return possible


def _has_global_hooks() -> bool:
    return bool(
        torch_module._global_forward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_backward_pre_hooks
        or torch_module._global_backward_hooks
    )


def _genuine(place: object, name: str) -> object:
    """Returns PyTorch's own function, None if something else has its place."""
    function = getattr(place, name)
    home = getattr(function, '__globals__', {}).get('__name__')
    known = getattr(place, '__module__', 'torch.nn.functional')
    return function if home in (None, known) else None


# Functions that counters and quantisers replace, to change all layers at once.
_FUNCTIONS = {
    (place, name): _genuine(place, name)
    for place, names in (
        (F, ('linear', 'layer_norm', 'gelu', 'conv2d', 'dropout')),
        (F, ('scaled_dot_product_attention',)),
        (nn.Module, ('__call__', '_call_impl')),
        (nn.Conv2d, ('_conv_forward',)),
    )
    for name in names
}
_FUNCTIONS.update(
    ((kind, '__call__'), nn.Module.__call__)
    for kind in (nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Conv2d)
)


def _is_patched() -> bool:
    return not is_compiling() and any(
        getattr(place, name) is not function
        for (place, name), function in _FUNCTIONS.items()
    )


def _original(kind: type[nn.Module]) -> object:
    """Returns the original forward of a class, None if it was replaced."""
    return _genuine(kind, 'forward')


_FORWARDS = {
    kind: _original(kind)
    for kind in (
        *(nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Conv2d),
        nn.Identity,
    )
}


_FORWARDS.update((k, k.forward) for k in (Conv2d, LayerScale, DropPath))
# Names of the layers that a branch calls by the seam, by class of the branch.
PRODUCTS: dict[type[nn.Module], tuple[str, ...]] = {Conv2d: ()}
# Layers of branches that can run as one function, by class of the branch.
LAYERS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {}


def calls_by_the_seam(*names: str) -> Callable[[type], type]:
    """Class decorator of a branch that uses its input in products only.

    Autocast casts the input of such a branch, so the input may be cast before.
    The branch calls the linear layers and convolutions with these names by
    ``mmdat.models.fused.project`` or as a ``.layers.Conv2d``.
    """

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        _FORWARDS[kind] = kind.forward
        PRODUCTS[kind] = names
        return kind

    return register


def may_be_one_piece(**layers: type[nn.Module]) -> Callable[[type], type]:
    """Class decorator of a branch that has a method `as_piece`.

    The method returns a ``Piece``, or None if a setting forbids it. It is
    called only if the branch has exactly these `layers`, all unchanged.
    """

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        _FORWARDS[kind] = kind.forward
        LAYERS[kind] = layers
        return kind

    return register


def is_stock(
    layer: nn.Module, kind: type[nn.Module] | None, x: Tensor
) -> bool:
    """Returns whether a layer has its original class and no observer."""
    return (
        type(layer) is kind
        and kind.forward is _FORWARDS.get(kind)
        and not _has_own_call(layer)
        and not (
            layer._forward_pre_hooks
            or layer._forward_hooks
            or layer._backward_pre_hooks
            or layer._backward_hooks
        )
        and _has_stock_settings(layer, x)
    )


def _has_own_call(layer: nn.Module) -> bool:
    """Returns whether a layer is called in another way than its class."""
    # No vars(...), which torch.compile of PyTorch 2.7 cannot trace.
    return (
        'forward' in layer.__dict__
        or '_conv_forward' in layer.__dict__
        or '_call_impl' in layer.__dict__
        or layer._compiled_call_impl is not None
    )


def _has_stock_settings(layer: nn.Module, x: Tensor) -> bool:
    """Returns whether a layer has settings that the fast code supports."""
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
        return _is_like(layer.weight, x) and _is_like(layer.bias, x)
    return all(_is_like(t, x) for t in layer._parameters.values())


def _is_like(parameter: Tensor | None, x: Tensor) -> bool:
    """Returns whether a parameter exists and is a plain tensor like `x`."""
    return (
        type(parameter) in (*PLAIN, nn.Parameter)
        and parameter.device == x.device
        and parameter.layout == torch.strided
        and (
            parameter.dtype == x.dtype
            or torch.is_autocast_enabled(x.device.type)
        )
    )
