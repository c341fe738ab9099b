# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The kinds of attention of a block, one file each.

Each module maps (B, H, W, C) to (B, H, W, C): it projects its input, calls one
function of ``mmdat.ops`` and projects the result.
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
