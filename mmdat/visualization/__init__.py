# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Pictures of what a DAT looks at; not imported by ``import mmdat``."""

from .drawing import draw_attention, draw_points
from .explorer import Explorer, explore
from .figures import attention_figure, points_figure
from .findings import Findings, find
from .frames import Frame
from .picture import Picture, load_model, load_picture, record
from .recorder import BlockRecord, DATRecorder, deformable_blocks
from .statistics import offset_statistics

__all__ = [
    'BlockRecord',
    'DATRecorder',
    'Explorer',
    'Findings',
    'Frame',
    'Picture',
    'attention_figure',
    'deformable_blocks',
    'draw_attention',
    'draw_points',
    'explore',
    'find',
    'load_model',
    'load_picture',
    'offset_statistics',
    'points_figure',
    'record',
]
