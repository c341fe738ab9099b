# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Adapting checkpoints while they are loaded.

A backbone, and whatever model it is put into, rewrites the state dict that it
is given, so that released files load through ``init_cfg``, ``load_from`` and
plain ``load_state_dict`` alike, from any tool.
"""

from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from . import released
from .tables import fit

_PREFIX = 'backbone.'


def adapt_checkpoints_of(backbone: nn.Module) -> None:
    """Lets a :class:`mmdat.models.DAT` load released and resized files."""
    backbone._register_load_state_dict_pre_hook(
        _adapt_backbone, with_module=True
    )


def _adapt_backbone(
    backbone: nn.Module, state_dict: dict[str, Any], prefix: str, *_
) -> None:
    """Rewrites the backbone's entries of a state dict in place."""
    if not prefix:
        _replace(state_dict, _backbone_entries(released.unwrap(state_dict)))
    entries = {
        key[len(prefix) :]: value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    own = backbone.state_dict()
    translated = dict(entries)
    if released.is_released(entries):
        translated = released.translate(entries)
    _settle_norms(translated, own)
    resized = []
    for name, value in translated.items():
        if name in own and isinstance(value, torch.Tensor):
            translated[name] = fit(name, value, own[name])
            if 'table' in name and translated[name] is not value:
                resized.append(name)
    if resized:
        print_log(
            f'Resized {len(resized)} position-bias tables to the resolution '
            f'of the model, from {resized[0]} on.',
            logger='current',
        )
    for key in entries:
        del state_dict[prefix + key]
    state_dict.update((prefix + k, v) for k, v in translated.items())


def _backbone_entries(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The backbone's part of a whole model's state dict, prefix removed."""
    inside = {
        key[len(_PREFIX) :]: value
        for key, value in state_dict.items()
        if key.startswith(_PREFIX)
    }
    return inside or dict(state_dict)


def _settle_norms(entries: dict[str, Any], own: dict[str, Any]) -> None:
    """Drops output norms the model lacks, fills in those of a classifier.

    A classifier holds the norm of stage 4 alone; a dense model that starts
    from it keeps the initial values of the other three.
    """
    held = [i for i in range(4) if f'norm{i}.weight' in entries]
    for i in range(4):
        for name in (f'norm{i}.weight', f'norm{i}.bias'):
            if name not in own:
                entries.pop(name, None)
            elif held == [3] and name not in entries:
                entries[name] = own[name]


def _adapt_parent(
    parent: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    *_,
    backbone_name: str,
) -> None:
    """Puts the entries of a bare released file where a model expects them."""
    if prefix:
        return
    inside = released.unwrap(state_dict)
    if not released.is_released(inside):
        if inside is not state_dict and any(
            key.startswith(_PREFIX) for key in inside
        ):
            _replace(state_dict, dict(inside))
        return
    entries = {}
    for key, value in inside.items():
        if not key.startswith('cls_head.'):
            entries[f'{backbone_name}.{key}'] = value
        elif f'head.fc.{key[9:]}' in dict(parent.named_parameters()):
            entries[f'head.fc.{key[9:]}'] = value
    _replace(state_dict, entries)


def _replace(state_dict: dict[str, Any], entries: dict[str, Any]) -> None:
    state_dict.clear()
    state_dict.update(entries)


def _on_registration(
    parent: nn.Module, name: str, module: nn.Module | None
) -> None:
    """Called by torch when any module is put into another."""
    from ..models.dat import DAT

    if isinstance(module, DAT):
        parent._register_load_state_dict_pre_hook(
            partial(_adapt_parent, backbone_name=name), with_module=True
        )


nn.modules.module.register_module_module_registration_hook(_on_registration)
