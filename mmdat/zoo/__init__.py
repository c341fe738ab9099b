# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Models without OpenMMLab packages, with timm's argument names.

``names.py`` lists the models, ``classifier.py`` defines a backbone with a
head, ``weights.py`` loads a file and ``create.py`` combines them.
``timm_dat.py`` registers the models with timm; ``timm_hook.py`` imports it
when timm is imported.
"""

from .classifier import DATClassifier
from .create import create_model
from .names import list_models

__all__ = ['DATClassifier', 'create_model', 'list_models']
