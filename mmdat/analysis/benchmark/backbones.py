# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Building backbones: ours, peers from mmdet, and foreign ones."""

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from ...models import DAT
from ...utils.errors import UserError
from .cases import Subject

# Class of mmdet.models.backbones, and its arguments. Stochastic depth is off
# for all, so that every block runs in every training step.
PEERS = {
    'swin_t': (
        'SwinTransformer',
        dict(
            embed_dims=96,
            depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 24),
            window_size=7,
            drop_path_rate=0.0,
        ),
    ),
    'pvt_v2_b2': (
        'PyramidVisionTransformerV2',
        dict(embed_dims=64, num_layers=(3, 4, 6, 3), drop_path_rate=0.0),
    ),
    'resnet50': ('ResNet', dict(depth=50)),
}


def check_backbone(name: str) -> None:
    """Raises UserError for a name that is neither ours nor a peer."""
    if name not in DAT.arch_zoo and name not in PEERS:
        raise UserError(
            f'A backbone must be one of {", ".join((*DAT.arch_zoo, *PEERS))}; '
            f'got {name!r}; give others as --foreign NAME=file.py:function.'
        )


def why_missing(subject: Subject) -> str | None:
    """Why a subject cannot be had in this environment, None if it can."""
    if subject.factory is None and subject.name in PEERS:
        for package in ('mmcv', 'mmdet'):
            if find_spec(package) is None:
                return f'{package} is not installed'
    return None


def build_backbone(subject: Subject) -> nn.Module:
    """Builds a backbone that maps images (B, 3, H, W) to feature maps.

    Raises:
        ValueError: A backend that the backbone does not know.
        ImportError: A package that is missing.
        UserError: A factory that is not there.
    """
    if subject.factory is not None:
        return load_factory(subject.factory)()
    if subject.name in DAT.arch_zoo:
        return DAT(subject.name, backend=subject.backend)
    from mmdet.models import backbones

    kind, arguments = PEERS[subject.name]
    return getattr(backbones, kind)(**arguments)


def load_factory(place: str):
    """The function that ``path/to/file.py:function`` names.

    Files beside it can be imported by it, as if it were run.

    Raises:
        UserError: There is no such file or function.
    """
    file, _, name = place.rpartition(':')
    path = Path(file).resolve()
    if not file or not path.is_file():
        raise UserError(
            f'A foreign backbone is given as NAME=file.py:function, and there '
            f'is no file {file!r}; got {place!r}.'
        )
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UserError(f'{file} has no function {name!r}.')
    return getattr(module, name)
