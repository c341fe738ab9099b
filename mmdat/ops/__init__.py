# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Functions of tensors: all the maths of sampling and attention.

Layout is channels-last, (B, H, W, heads, d). Nothing here has parameters.
"""

from .deformable_attention import deformable_attention, sample_at_points
from .dispatch import explain
from .neighborhood_attention import neighborhood_attention
from .window_attention import window_attention

__all__ = [
    'deformable_attention',
    'explain',
    'neighborhood_attention',
    'sample_at_points',
    'window_attention',
]
