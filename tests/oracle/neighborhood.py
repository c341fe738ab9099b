# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""N: neighbourhood attention (Hassani et al., CVPR 2023, dilation 1)."""

import numpy as np

from .layers import attend, linear, split_heads
from .layout import Params


def window_start(place: int, size: int, kernel: int) -> int:
    """First of the `kernel` places that the query at `place` attends to.

    At a border the window moves inside instead of being padded.
    """
    return min(max(place - kernel // 2, 0), size - kernel)


def neighborhood_attention(
    x: np.ndarray, params: Params, heads: int
) -> np.ndarray:
    """Every query attends to the K x K keys nearest to it.

    Maps smaller than K are zero-padded right and below to K.

    Args:
        x: Normed input, (H, W, C).
        params: `qkv.{weight,bias}`, `proj.{weight,bias}`, `rpb` (heads,
            2K - 1, 2K - 1), whose entry K - 1 is for a key at the query's
            place and larger ones for keys below or right of it.

    Returns:
        (H, W, C).
    """
    height, width, channels = x.shape
    rpb = params['rpb']
    kernel = (rpb.shape[-1] + 1) // 2
    padded = np.pad(
        x, ((0, max(0, kernel - height)), (0, max(0, kernel - width)), (0, 0))
    )
    rows, columns, _ = padded.shape
    qkv = linear(padded, params['qkv.weight'], params['qkv.bias'])
    q, k, v = np.split(qkv, 3, axis=-1)

    out = np.empty((height, width, channels))
    for y in range(height):
        for x_ in range(width):
            top = window_start(y, rows, kernel)
            left = window_start(x_, columns, kernel)
            near = (slice(top, top + kernel), slice(left, left + kernel))
            bias_top, bias_left = top - y + kernel - 1, left - x_ + kernel - 1
            bias = rpb[
                :, bias_top : bias_top + kernel, bias_left : bias_left + kernel
            ].reshape(heads, 1, -1)
            mixed = attend(
                split_heads(q[y, x_][None], heads),
                split_heads(k[near].reshape(-1, channels), heads),
                split_heads(v[near].reshape(-1, channels), heads),
                bias,
            )
            out[y, x_] = mixed.reshape(channels)
    return linear(out, params['proj.weight'], params['proj.bias'])
