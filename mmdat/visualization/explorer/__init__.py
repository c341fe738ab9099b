# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Makes an interactive HTML page of the attention in a picture."""

from .page import Explorer, explore

__all__ = ['Explorer', 'explore']
