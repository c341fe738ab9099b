# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The configs of the project: their names, parsed, and built."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmdat.engine.configuration import load_config

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
DIGITS = [name for name in NAMES if name.endswith('_digits')]
PUBLISHED = [name for name in NAMES if name not in DIGITS]


@cache
def _parsed(name: str) -> Config:
    return load_config(str(ROOT / 'configs' / f'{name}.py'))


def load(name: str) -> Config:
    """A config of its own for each caller."""
    return deepcopy(_parsed(name))


def build(cfg: Config) -> nn.Module:
    """The model of a config."""
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@cache
def skeleton(name: str) -> nn.Module:
    """The whole model of a config, with shapes and without numbers.

    It is shared, so it must not be changed.
    """
    with torch.device('meta'):
        return build(_parsed(name))
