# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The registry of mmdat, a child of mmengine's root registry.

``locations`` makes ``type='mmdat.DAT'`` resolve from any scope without an
import in the config: mmengine imports this file, then the listed packages.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmdat',
    locations=['mmdat.models'],
)
