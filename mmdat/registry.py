# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The registries of mmdat, children of mmengine's root registries.

``locations`` makes ``type='mmdat.DAT'`` resolve from any scope without an
import in the config: mmengine imports this file, then the listed modules.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmdat',
    locations=['mmdat.models'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmdat',
    locations=['mmdat.engine.layer_decay'],
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=MMENGINE_PARAM_SCHEDULERS,
    scope='mmdat',
    locations=['mmdat.engine.schedules'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmdat',
    locations=['mmdat.engine.hooks', 'mmdat.visualization.points_hook'],
)
