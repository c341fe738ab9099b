# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""An interactive HTML page of the attention of a picture."""

from .page import Explorer, explore

__all__ = ['Explorer', 'explore']
