# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Registers the models with timm when this module is imported.

``timm.create_model('dat_tiny', ...)`` and ``timm.list_models('dat_*')`` then
know the models. ``pretrained=True, pretrained_cfg_overlay=dict(file=FILE)``
loads weights in the same way as ``mmdat.create_model``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    register_model,
)
from torch import nn

from ..models.arch import NUM_STAGES, require
from .classifier import DATClassifier
from .names import NAMES
from .settings import default_cfg

__all__: list[str] = []  # timm adds the names

default_cfgs = generate_default_cfgs(
    {name: default_cfg(arch) for name, arch in NAMES.items()}
)


def _build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    if overlay.get('file') or overlay.get('url'):
        overlay.setdefault('custom_load', True)  # with mmdat's reader
    feature_cfg = dict(out_indices=tuple(range(NUM_STAGES)))
    kind = kwargs.setdefault('feature_cls', 'getter')
    if not kwargs.get('features_only'):
        kwargs.pop('feature_cls')
    elif isinstance(kind, str):
        require(
            kind in ('getter', 'hook', 'fx'),
            "feature_cls must be 'getter', 'hook' or 'fx'",
            kind,
        )
        if kind != 'getter':
            feature_cfg['output_fmt'] = 'NHWC'
    return build_model_with_cfg(
        partial(DATClassifier, NAMES[name]),
        name,
        pretrained,
        pretrained_cfg_overlay=overlay,
        feature_cfg=feature_cfg,
        **kwargs,
    )


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _build(name, pretrained, kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f'The model {NAMES[name]}.'
    return create


for _name in NAMES:
    if not is_model(_name):  # timm may add a model of this name
        globals()[_name] = register_model(_entry_point(_name))
