# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The backbone and its parts; needs torch and mmengine only."""

from .dat import DAT

__all__ = ['DAT']
