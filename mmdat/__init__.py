# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable Attention Transformer backbones for OpenMMLab.

Importing this package registers :class:`mmdat.models.DAT`, so that
``custom_imports = dict(imports=['mmdat'])`` is all a config needs. Only torch
and mmengine are imported.
"""

from .models import DAT
from .version import __version__

__all__ = ['DAT', '__version__']
