# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Chooses the plain form of a module that TorchScript compiles."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from ...utils.errors import SettingError

_FORMS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {}
_FORWARDS: dict[type[nn.Module], Callable] = {}


class Scriptable:
    """Mixin of modules with a plain form for ``torch.jit.script``."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns the plain form; PyTorch calls this before compiling."""
        return scriptable(self)


def form_of(*kinds: type[nn.Module]) -> Callable:
    """Decorator of a function that makes the form of these classes."""

    def register(make: Callable) -> Callable:
        _FORMS.update(dict.fromkeys(kinds, make))
        _FORWARDS.update((kind, kind.forward) for kind in kinds)
        return make

    return register


def scriptable(module: nn.Module | None) -> nn.Module | None:
    """Returns the plain form of a module; parameters are shared.

    Args:
        module: A module. Modules outside mmdat are returned unchanged.

    Raises:
        SettingError: The module has a kind of attention without a plain form,
            or something that a plain form would lose, such as a hook.
    """
    kind = type(module)
    if kind in (nn.Sequential, nn.ModuleList, *_FORMS):
        _check_changes(module)
    elif _inherits_forward(kind):
        raise SettingError(
            f'torch.jit.script has plain forms of the modules of mmdat, not '
            f'of changed ones such as {kind.__name__}; remove the change, or '
            f'use torch.jit.trace.'
        )
    if kind is nn.Sequential:
        children = module.named_children()
        return nn.Sequential(
            OrderedDict((name, scriptable(child)) for name, child in children)
        )
    if kind is nn.ModuleList:
        return nn.ModuleList(map(scriptable, module))
    make = _FORMS.get(kind)
    return module if make is None else make(module).train(module.training)


def _check_changes(module: nn.Module) -> None:
    """Raises SettingError for what the plain form of a module would lose."""
    lost = None
    if (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    ):
        lost = 'hooks'
    elif (
        'forward' in vars(module)
        or '_conv_forward' in vars(module)
        or type(module).forward
        is not _FORWARDS.get(type(module), type(module).forward)
    ):
        lost = 'replaced forward'
    elif getattr(module, 'padding_mode', 'zeros') != 'zeros':
        lost = f'padding_mode={module.padding_mode!r}'
    if lost is not None:
        raise SettingError(
            f'torch.jit.script compiles a plain form of each module, which '
            f'would lose the {lost} of a {type(module).__name__}; take that '
            f'away, or use torch.jit.trace.'
        )


def _inherits_forward(kind: type) -> bool:
    """Returns whether a class is derived from ours, but not its forward."""
    return any(
        issubclass(kind, known) and kind.forward is known.forward
        for known in _FORMS
    )


def refuse(module: nn.Module) -> nn.Module:
    """Raises SettingError for a module without a plain form."""
    bias = getattr(module, 'position_bias', None)
    what = f' with position_bias={bias!r}' if bias else ''
    raise SettingError(
        f'torch.jit.script has forms of the attentions LSNDPXF, of D without '
        f"position_bias='fixed'; got {type(module).__name__}{what}, so use "
        f'torch.export or torch.jit.trace.'
    )
