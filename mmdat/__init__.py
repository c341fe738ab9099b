# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable Attention Transformer backbones for OpenMMLab.

Importing this package registers ``mmdat.models.DAT``, so a config needs only
``custom_imports = dict(imports=['mmdat'])``. It also lets configs inherit from
those of every OpenMMLab package and of this one. Without OpenMMLab packages,
``create_model`` makes models as timm does. The import needs torch and mmengine
only.
"""

from importlib.util import find_spec

if find_spec('mmengine') is None:
    raise ModuleNotFoundError(
        'mmdat needs mmengine; install it with pip install onedl-mmengine '
        '(the maintained fork) or pip install mmengine.',
        name='mmengine',
    )

from .models import DAT
from .utils.config_files import config_path
from .utils.setup_env import setup_config_packages
from .version import __version__
from .zoo import create_model, list_models
from .zoo.timm_hook import register_with_timm

setup_config_packages()
register_with_timm()

__all__ = [
    'DAT',
    '__version__',
    'config_path',
    'create_model',
    'list_models',
]
