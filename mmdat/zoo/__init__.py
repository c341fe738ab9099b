# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Models without OpenMMLab packages, with timm's names of arguments.

``names.py`` knows the models by name, ``classifier.py`` is a backbone with a
head, ``weights.py`` starts one from a file and ``create.py`` does all of it;
``timm_dat.py`` registers them with timm, when ``timm_hook.py`` sees it.
"""

from .classifier import DATClassifier
from .create import create_model
from .names import list_models

__all__ = ['DATClassifier', 'create_model', 'list_models']
