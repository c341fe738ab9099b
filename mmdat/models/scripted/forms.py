# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Chooses the plain form of a module that TorchScript compiles."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from ...utils.errors import SettingError

_FORMS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {}


class Scriptable:
    """Mixin of modules with a plain form for ``torch.jit.script``."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns the plain form; PyTorch calls this before compiling."""
        return scriptable(self)


def form_of(*kinds: type[nn.Module]) -> Callable:
    """Decorator of a function that makes the form of these classes."""

    def register(make: Callable) -> Callable:
        _FORMS.update(dict.fromkeys(kinds, make))
        return make

    return register


def scriptable(module: nn.Module | None) -> nn.Module | None:
    """Returns the plain form of a module; parameters are shared.

    Args:
        module: A module. Modules outside mmdat are returned unchanged.

    Raises:
        SettingError: The module has a kind of attention without a plain form.
    """
    kind = type(module)
    if kind is nn.Sequential:
        children = module.named_children()
        return nn.Sequential(
            OrderedDict((name, scriptable(child)) for name, child in children)
        )
    if kind is nn.ModuleList:
        return nn.ModuleList(map(scriptable, module))
    make = _FORMS.get(kind)
    return module if make is None else make(module).train(module.training)


def refuse(module: nn.Module) -> nn.Module:
    """Raises SettingError for a module without a plain form."""
    bias = getattr(module, 'position_bias', None)
    what = f' with position_bias={bias!r}' if bias else ''
    raise SettingError(
        f'torch.jit.script has forms of the attentions LSNDPXF, of D without '
        f"position_bias='fixed'; got {type(module).__name__}{what}, so use "
        f'torch.export or torch.jit.trace.'
    )
