# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks of arguments that other backbones of OpenMMLab have too."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import Any

from ..utils.errors import SettingError
from .arch import require

_IN_ARCH = 'arch=dict(embed_dims=..., depths=..., num_heads=...)'
# Names in other backbones.
_ELSEWHERE = {
    'in_chans': 'in_channels',
    'drop_path': 'drop_path_rate',
    'drop_path_prob': 'drop_path_rate',
    'use_checkpoint': 'with_cp',
    'pretrain_img_size': 'img_size',
    'input_size': 'img_size',
    'init_values': 'layer_scale_init_value',
    'embed_dims': _IN_ARCH,
    'embed_dim': _IN_ARCH,
    'depths': _IN_ARCH,
    'num_heads': _IN_ARCH,
    'num_classes': 'num_classes of the head',
    'norm_cfg': 'not needed: all norms are layer norms',
    'style': 'not needed: it is for ResNets',
    'depth': "arch, such as 'dat_t'",
}


def takes_known_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Lets an ``__init__`` suggest the right name of an unknown argument.

    It also accepts ``pretrained``, which older base configs of OpenMMLab set:
    None has no effect, and a file or URL means
    ``init_cfg=dict(type='Pretrained', checkpoint=...)``.
    """
    known = [name for name in signature(init).parameters if name != 'self']

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = [k for k in kwargs if k not in known and k != 'pretrained']
        if unknown:
            raise SettingError(_sentence(type(self).__name__, unknown, known))
        start = kwargs.pop('pretrained', None)
        if start is not None and start is not False:
            _check_pretrained(start, kwargs.get('init_cfg'))
            kwargs['init_cfg'] = dict(type='Pretrained', checkpoint=start)
        init(self, *args, **kwargs)

    return checked


def _sentence(owner: str, unknown: list[str], known: list[str]) -> str:
    name = unknown[0]
    meant = _ELSEWHERE.get(name)
    if meant is None:
        close = get_close_matches(name, known, 1, 0.5)
        meant = close[0] if close else None
    advice = f'use one of {", ".join(known)}'
    if meant is not None:
        advice = f'the argument here is {meant}'
    return (
        f'{owner}.__init__() got an unexpected keyword argument {name!r}; '
        f'{advice}.'
    )


def _check_pretrained(start: Any, init_cfg: Any) -> None:
    """Raises SettingError for what is no file of weights of a DAT."""
    rule = None
    if not isinstance(start, str):
        rule = 'pretrained must be None or a file of weights'
    elif start.startswith(('open-mmlab://', 'torchvision://', 'mmcls://')):
        rule = (
            'pretrained must be None or a file of weights of a DAT; a base '
            'config has set it for another backbone, so set '
            'model.pretrained=None, and name a file in init_cfg=dict('
            "type='Pretrained', checkpoint=...)"
        )
    elif init_cfg:
        rule = 'pretrained and init_cfg both say where weights come from'
    if rule is not None:
        raise SettingError(f'{rule}; got {start!r}.')


def is_pretrained(part: dict[str, Any]) -> bool:
    """Whether a part of an init_cfg reads a checkpoint."""
    kind = part.get('type')
    return getattr(kind, '__name__', kind) in ('Pretrained', 'PretrainedInit')


def check_init_cfg(init_cfg: Any) -> None:
    """Raises SettingError for an init_cfg that mmengine or we cannot read."""
    parts = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    require(
        not init_cfg
        or all(
            isinstance(part, dict) and isinstance(part.get('type'), str | type)
            for part in parts
        ),
        "init_cfg must be None, or a dict with a type such as 'Pretrained', "
        'or a list of such',
        init_cfg,
    )
    for part in parts if init_cfg else ():
        if not is_pretrained(part):
            continue
        name = part.get('checkpoint')
        require(
            isinstance(name, str | os.PathLike) and os.fspath(name).strip(),
            'init_cfg.checkpoint must be the path or address of a file',
            name,
        )
        require(
            isinstance(part.get('strict', True), bool),
            'init_cfg.strict must be True or False',
            part.get('strict'),
        )
        require(
            isinstance(part.get('prefix'), str | None),
            'init_cfg.prefix must be a text or None',
            part.get('prefix'),
        )
        known = ('type', 'checkpoint', 'prefix', 'strict', 'map_location')
        require(
            set(part) <= set(known),
            f"init_cfg of type 'Pretrained' may hold {', '.join(known)}",
            ', '.join(str(key) for key in part if key not in known),
        )
