# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Adapting checkpoints while they are loaded.

A backbone rewrites the state dict that it receives, alone or inside a model.
So released files load through ``init_cfg``, ``load_from`` and
``load_state_dict``, from any tool.
"""

import sys
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from . import released
from .tables import fit, pixels_of

_PREFIX = 'backbone.'


def adapt_checkpoints_of(backbone: nn.Module) -> None:
    """Lets a ``mmdat.models.DAT`` load released and resized files."""
    backbone._register_load_state_dict_pre_hook(
        _adapt_backbone, with_module=True
    )


def _adapt_backbone(
    backbone: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    _missing: list[str],
    unexpected: list[str],
    _errors: list[str],
) -> None:
    """Rewrites the backbone's entries of a state dict in place."""
    if not prefix:
        _replace(state_dict, backbone_entries(released.unwrap(state_dict)))
    elif not any(key.startswith(prefix) for key in state_dict):
        _take_from_parent(state_dict, prefix, unexpected)
    entries = {
        key[len(prefix) :]: value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    own = backbone.state_dict()
    translated = dict(entries)
    if released.is_released(entries):
        translated = released.translate(entries)
    translated = released.without_wrappers(translated, own)
    _settle_norms(translated, own)
    _settle_tables(backbone, translated, own)
    for key in entries:
        del state_dict[prefix + key]
    state_dict.update((prefix + k, v) for k, v in translated.items())


def backbone_entries(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's part of a whole model's state dict, prefix removed."""
    inside = {
        key[len(_PREFIX) :]: value
        for key, value in state_dict.items()
        if key.startswith(_PREFIX)
    }
    return inside or dict(state_dict)


def _settle_norms(entries: dict[str, Any], own: dict[str, Tensor]) -> None:
    """Drops output norms the model lacks, fills in those of a classifier.

    A classifier has only the norm of the last stage, before its pooling. A
    model with other outputs starts with new norms (weight 1, bias 0), as the
    authors' detectors and segmentors did: their ``norms.3`` is not called
    ``cls_norm``, so it was not loaded. A classifier loads the norm.
    """
    held = [i for i in range(4) if f'norm{i}.weight' in entries]
    wanted = [i for i in range(4) if f'norm{i}.weight' in own]
    starts_new = held == [3] and wanted != [3]
    for i in range(4):
        for name in (f'norm{i}.weight', f'norm{i}.bias'):
            if name not in own:
                entries.pop(name, None)
            elif starts_new:
                entries[name] = own[name]
    if starts_new:
        numbers = ', '.join(map(str, wanted))
        print_log(
            f'The file is of a classifier. Its output norm belongs to the '
            f'head and is not loaded; the output norms of this model (stages '
            f'{numbers}) start new.',
            logger='current',
        )


def _settle_tables(
    backbone: nn.Module, entries: dict[str, Any], own: dict[str, Tensor]
) -> None:
    """Fits tables of another size to the model, or the model to them.

    Tables of DAT are resized, as the authors do when they build the model at
    ``img_size=384`` and start it from 224. Tables of DAT++ are read at
    normalised coordinates, so a table of any size is exact at any resolution,
    and the model takes the tables of the file. The authors' config of DAT-B++
    at 384 builds the model at ``img_size=224`` and keeps tables of 111 x 111,
    but the parameters that they report (94 M) imply tables of 191 x 191. A
    file of either kind gives its own results in this way. A released file at
    384 with small tables looks like one at 224.
    """
    resized, taken = [], []
    for name, value in entries.items():
        if name not in own or not isinstance(value, Tensor):
            continue
        if _is_kept(backbone, name, value, own[name]):
            # The parameter gets new storage and stays the same object, so
            # that optimisers and averages keep their reference to it.
            table = backbone.get_parameter(name)
            table.data = table.data.new_empty(value.shape)
            taken.append((name, value.shape, own[name].shape))
            continue
        entries[name] = fit(name, value, own[name])
        if 'table' in name and entries[name] is not value:
            resized.append(name)
    if resized:
        print_log(
            f'Resized {len(resized)} position-bias tables to the resolution '
            f'of the model, {resized[0]} first.',
            logger='current',
        )
    if taken:
        name, new, old = taken[0]
        stage = int(name.split('.')[1])
        print_log(
            f'Took {len(taken)} position-bias tables as they are in the file, '
            f'from {name} on: they were made for images of '
            f'{pixels_of(new, stage)} pixels and the model was built for '
            f'{pixels_of(old, stage)}, which makes no difference to DAT++. A '
            f'training in several processes has to build the model with the '
            f"file's img_size.",
            logger='current',
        )


def _is_kept(
    backbone: nn.Module, name: str, value: Tensor, own: Tensor
) -> bool:
    """Whether the model takes a table of another size as it is."""
    if not name.endswith('.rpe_table') or value.shape == own.shape:
        return False
    attn = backbone.get_submodule(name.removesuffix('.rpe_table'))
    return (
        getattr(attn, 'position_bias', None) == 'table'
        and attn.convention == 'dat_pp'
        and value.ndim == own.ndim
        and len(value) == len(own)
        and all(side % 2 for side in value.shape[1:])
    )


def _take_from_parent(
    state_dict: dict[str, Any], prefix: str, unexpected: list[str]
) -> None:
    """Finds a backbone's entries in a file without the model's prefixes.

    A released classifier, or a state dict in a wrapper, has no entry that
    starts with the name of the backbone in the model. This renames all entries
    to those of the model, for the backbone and for the modules that are loaded
    after it.
    """
    loading = _loading_of_the_model()
    if loading is None:
        return
    given, model = loading
    inside = released.unwrap(given)
    if released.is_released(inside):
        entries = {
            prefix + key: value
            for key, value in inside.items()
            if not key.startswith('cls_head.')
        }
        if hasattr(getattr(model, 'head', None), 'fc'):
            entries.update(
                (f'head.fc.{key.removeprefix("cls_head.")}', value)
                for key, value in inside.items()
                if key.startswith('cls_head.')
            )
    elif inside is not given:
        entries = dict(inside)
    else:
        return
    known = set(given)
    unexpected[:] = [key for key in unexpected if key not in known]
    unexpected += [
        key for key in entries if key.split('.')[0] not in model._modules
    ]
    _replace(given, entries)
    state_dict.update(
        (key, value)
        for key, value in entries.items()
        if key.startswith(prefix)
    )


def _loading_of_the_model() -> tuple[dict[str, Any], nn.Module] | None:
    """The state dict that is being loaded, and the model it was given to.

    Both torch and mmengine visit the modules with a recursive function
    ``load``, which passes each module only its own entries. So a backbone
    reads the others from the frame of the first of these calls. The
    alternative would be a global hook on module registration, which would run
    for every module of the process.
    """
    frame = sys._getframe(1)
    while frame is not None:
        local = frame.f_locals if frame.f_code.co_name == 'load' else {}
        if local.get('prefix') == '' and 'local_state_dict' in local:
            return local['local_state_dict'], local['module']
        frame = frame.f_back
    return None


def _replace(state_dict: dict[str, Any], entries: Mapping[str, Any]) -> None:
    state_dict.clear()
    state_dict.update(entries)
