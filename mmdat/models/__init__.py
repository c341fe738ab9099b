# Copyright (c) mmdat contributors. Apache-2.0 licence.
from .dat import DAT

__all__ = ['DAT']
