# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""F: attention of every place to every place, without position bias."""

import numpy as np

from .layers import attend, linear, merge_heads, split_heads
from .layout import Params


def full_attention(x: np.ndarray, params: Params, heads: int) -> np.ndarray:
    """Softmax attention on all places of the map.

    Args:
        x: Normed input, (H, W, C).
        params: `qkv.weight` (no bias), `proj.weight` and `proj.bias`.

    Returns:
        (H, W, C).
    """
    height, width, channels = x.shape
    qkv = linear(
        x.reshape(-1, channels), params['qkv.weight'], np.zeros(3 * channels)
    )
    q, k, v = (split_heads(part, heads) for part in np.split(qkv, 3, axis=-1))
    out = merge_heads(attend(q, k, v)).reshape(height, width, channels)
    return linear(out, params['proj.weight'], params['proj.bias'])
