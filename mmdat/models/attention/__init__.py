# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The kinds of attention a block may have, one file each.

Each maps (B, H, W, C) to (B, H, W, C), projects its input, calls one function
of ``mmdat.ops`` and projects back.
"""

from .deformable import DeformableAttention
from .full import FullAttention
from .neighborhood import NeighborhoodAttention
from .pyramid import PyramidAttention
from .query import QueryAttention
from .slide import SlideAttention
from .window import WindowAttention

__all__ = [
    'DeformableAttention',
    'FullAttention',
    'NeighborhoodAttention',
    'PyramidAttention',
    'QueryAttention',
    'SlideAttention',
    'WindowAttention',
]
