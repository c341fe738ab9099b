# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Starting a backbone from a checkpoint, completely or in part."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import update_init_info
from torch import Tensor, nn

from ..utils.errors import UserError
from . import released
from .fitting import Misfit, load_and_compare
from .hooks import backbone_entries
from .loading import read_checkpoint
from .tables import fit

# How the names of a DAT's first layer start: the authors' and ours.
_FIRST = re.compile(r'(?:^|(?<=\.))(?:patch_proj|patch_embed\.conv1)\.')
_PLACES = ('', 'backbone.')  # prefixes that need not be given


def start_from(
    backbone: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    strict: bool = True,
    map_location: Any = None,
) -> None:
    """Loads the weights of ``init_cfg=dict(type='Pretrained', ...)``.

    Args:
        backbone: A [`DAT`][mmdat.models.DAT].
        checkpoint: File or URL.
        prefix: What the names of the wanted entries start with, such as
            ``'teacher.'``. Whole models with ``backbone.`` and backbones
            alone need none.
        strict: Whether each parameter must be in the file. Otherwise the
            entries that fit are loaded, the first kernel is adapted to the
            input channels, and the log names the rest.
        map_location: Not used, but accepted as by mmengine: the file is read
            on the CPU, and its weights are copied to where the backbone is.

    Raises:
        UserError: The file is missing, is not a checkpoint, or does not fit.
    """
    content = read_checkpoint(os.fspath(checkpoint), 'cpu')
    note = start(backbone, checkpoint, content, prefix, strict)
    print_log(f'Started from {checkpoint}{note}.', logger='current')


class StartFrom:
    """An initialiser of mmengine that calls [`start_from`][].

    Args:
        **settings: Its arguments.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def __call__(self, module: nn.Module) -> None:
        """Loads the weights and notes them in mmengine's log."""
        start_from(module, **self.settings)
        if hasattr(module, '_params_init_info'):
            source = self.settings['checkpoint']
            update_init_info(module, f'Started from {source}')


def start(
    backbone: nn.Module,
    source: str,
    content: Mapping[str, Any],
    prefix: str | None = None,
    strict: bool = True,
) -> str:
    """As [`start_from`][], with a checkpoint that has been read.

    Returns:
        What was left out and adapted, as the end of a sentence.
    """
    entries = select(source, content, prefix)
    if strict:
        misfit = load_and_compare(backbone, entries)
        if misfit.is_fatal:
            raise UserError(
                f'{source} does not fit the backbone: {misfit}. Use the file '
                f'of this arch, or init_cfg.strict=False to take what fits.'
            )
        return f' ({misfit})' if misfit.unexpected else ''
    fitting, left, adapted = _what_fits(backbone, entries)
    own = backbone.state_dict()
    if not fitting:
        raise UserError(
            f'Nothing of {source} fits the backbone: of its '
            f'{len(left)} entries none has a name and shape of it. Use a '
            f'file of a DAT with the same widths.'
        )
    misfit = load_and_compare(backbone, fitting)
    odd = Misfit(unsuited=misfit.unsuited, infinite=misfit.infinite)
    if odd != Misfit():
        raise UserError(f'{source} does not hold weights: {odd}.')
    new = tuple(name for name in own if name in misfit.missing)
    parts = [
        f'{_names(names)} {what}'
        for names, what in (
            (left, 'of the file left out'),
            (new, 'of the model start new'),
            (misfit.reshaped + misfit.unusable, 'could not be copied'),
        )
        if names
    ]
    return ''.join(f'; {part}' for part in [*parts, *adapted])


def select(
    source: str, content: Mapping[str, Any], prefix: str | None = None
) -> dict[str, Any]:
    """The entries of a checkpoint that a backbone is to start from.

    Args:
        source: The file, for messages.
        content: As it was read.
        prefix: See [`start_from`][].

    Raises:
        UserError: No entry has the prefix; or no prefix was given and the
            entries have another one than ``backbone.``, such as ``teacher.``
            or ``_orig_mod.``.
    """
    entries = _entries(released.entries_of(content))
    if prefix:
        start = prefix.rstrip('.') + '.'
        chosen = _below(start, entries) or _below(start, _entries(content))
        if not chosen:
            raise UserError(
                f'{source} has no entry that starts with {start}; '
                f'{_where(entries)}.'
            )
        entries = chosen
    if elsewhere(entries) is not None:
        raise UserError(
            f'The entries of {source} are under other names: '
            f'{_where(_entries(released.entries_of(content)))}.'
        )
    return entries


def _entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """Entries by name; those of a dict have its name as a prefix."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and any(
            isinstance(one, Tensor) for one in value.values()
        ):
            flat.update(
                (f'{name}.{str(inner).removeprefix("module.")}', one)
                for inner, one in value.items()
            )
        else:
            flat[name] = value
    return flat


def _below(start: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose names begin with `start`, without it."""
    return {
        name[len(start) :]: value
        for name, value in entries.items()
        if name.startswith(start)
    }


def elsewhere(content: Mapping[str, Any]) -> str | None:
    """Which prefix to give if a backbone has one."""
    entries = _entries(released.entries_of(content))
    places = _places(entries)
    if not places or set(places) & set(_PLACES):
        return None
    return _where(entries)


def _places(entries: Mapping[str, Any]) -> list[str]:
    """Prefixes under which there is a backbone."""
    found = [(_FIRST.search(name), name) for name in entries]
    return list(
        dict.fromkeys(name[: hit.start()] for hit, name in found if hit)
    )


def _where(entries: Mapping[str, Any]) -> str:
    """Says which prefix to give."""
    places = _places(entries)
    if not places:
        return 'it holds neither DAT nor DAT++, so use another file'
    if set(places) & set(_PLACES):
        return (
            'leave out prefix, because whole models and single backbones are '
            'recognised without it'
        )
    offered = ' or '.join(f"prefix='{place}'" for place in places)
    return f'give init_cfg {offered}'


def _what_fits(
    backbone: nn.Module, entries: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """What a backbone can take, what it cannot, and what was adapted."""
    inside = backbone_entries(entries)
    if released.is_released(inside):
        inside = released.translate(inside)
    own, fitting, left, adapted = backbone.state_dict(), {}, [], []
    for name, value in released.without_wrappers(inside, own).items():
        wanted = own.get(name)
        if wanted is None or not isinstance(value, Tensor):
            left.append(name)
            continue
        if name == 'patch_embed.conv1.weight' and is_adaptable(value):
            channels = value.shape[1], wanted.shape[1]
            if channels[0] != channels[1]:
                value = adapt_input(value, channels[1])
                adapted.append(
                    f'{name} adapted from {channels[0]} input channels to '
                    f'{channels[1]}'
                )
        shape = fit(name, value, wanted).shape
        if shape == wanted.shape:
            fitting[name] = value
        else:
            left.append(name)
    return fitting, tuple(left), tuple(adapted)


def is_adaptable(weight: Any) -> bool:
    """Returns whether an entry is a kernel for ``adapt_input``."""
    return (
        isinstance(weight, Tensor)
        and weight.layout == torch.strided
        and weight.ndim == 4
        and weight.numel() > 0
    )


def adapt_input(weight: Tensor, channels: int) -> Tensor:
    """The kernel of a first convolution for other images, as timm does it.

    One channel gets the sum over all channels. More channels repeat them in
    turn, scaled so that the output keeps its size.

    Args:
        weight: (out, in, kernel, kernel).
        channels: Channels of the new images.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(channels / old), 1, 1)
    return repeated[:, :channels] * (old / channels)


def _names(names: tuple[str, ...]) -> str:
    shown = ', '.join(names[:4])
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    count = f'{len(names)} {"entry" if len(names) == 1 else "entries"}'
    return f'{count} ({shown}{more})'
