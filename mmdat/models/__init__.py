# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The backbone and its parts; needs torch and mmengine only."""

from .dat import DAT
from .scripted import attention, blocks, deformable  # noqa: F401 register

__all__ = ['DAT']
