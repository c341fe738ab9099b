# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Exports a trained model to one file that runs without OpenMMLab."""

from .exporting import FORMATS, Exported, export
from .parts import PARTS

__all__ = ['FORMATS', 'PARTS', 'Exported', 'export']
