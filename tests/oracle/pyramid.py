# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""P: attention to a smaller map of keys (Wang et al., PVT, ICCV 2021)."""

import numpy as np

from .layers import (
    attend,
    conv2d,
    layer_norm,
    linear,
    merge_heads,
    split_heads,
)
from .layout import Params


def pyramid_attention(x: np.ndarray, params: Params, heads: int) -> np.ndarray:
    """Attention of all places to a strided convolution of the map.

    Args:
        x: Normed input, (H, W, C).
        params: `q`, `kv`, `proj`, each with weight and bias, 1x1; where
            the keys are reduced by r > 1, `proj_ds.0`, an r x r convolution
            of stride r, and `proj_ds.1.norm`. Rows and columns that do not
            fill a stride are left out of the keys.

    Returns:
        (H, W, C).
    """
    height, width, channels = x.shape
    reduced = x
    if 'proj_ds.0.weight' in params:
        ratio = params['proj_ds.0.weight'].shape[-1]
        reduced = conv2d(
            x,
            params['proj_ds.0.weight'],
            params['proj_ds.0.bias'],
            stride=ratio,
        )
        reduced = layer_norm(
            reduced,
            params['proj_ds.1.norm.weight'],
            params['proj_ds.1.norm.bias'],
        )
    q = linear(x, params['q.weight'], params['q.bias'])
    kv = linear(reduced, params['kv.weight'], params['kv.bias'])
    k, v = np.split(kv.reshape(-1, 2 * channels), 2, axis=-1)
    out = attend(
        split_heads(q.reshape(-1, channels), heads),
        split_heads(k, heads),
        split_heads(v, heads),
    )
    out = merge_heads(out).reshape(height, width, channels)
    return linear(out, params['proj.weight'], params['proj.bias'])
