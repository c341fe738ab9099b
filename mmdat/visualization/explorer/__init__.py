# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention of a picture as a page to play with in a browser."""

from .page import Explorer, explore

__all__ = ['Explorer', 'explore']
