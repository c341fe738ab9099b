# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""E: slide attention (Pan et al., "Slide-Transformer", CVPR 2023).

As DAT++'s published code has it: on a quarter of the channels, with 3x3
neighbourhoods and zeros outside the map.
"""

import numpy as np

from .layers import linear, softmax
from .layout import Params


def shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """The map seen from places moved by (dy, dx), zeros outside."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[y, x] = image[y + dy, x + dx]
    return out


def neighbours(image: np.ndarray, params: Params, kernel: int) -> np.ndarray:
    """The K*K views of one head's keys or values.

    View t of channel c is what lies at neighbour t (row by row) plus a
    learnt depthwise K x K convolution of that channel, with the bias of both.

    Args:
        image: (H, W, c).
        params: `dep_conv.bias`, `dep_conv1.{weight,bias}`, channels c * K*K,
            the views of a channel next to one another. The weight of
            `dep_conv` is the constant shift and is not read.

    Returns:
        (H, W, c, K*K).
    """
    height, width, channels = image.shape
    half = kernel // 2
    moves = [
        (dy, dx)
        for dy in range(-half, half + 1)
        for dx in range(-half, half + 1)
    ]
    views = np.stack([shifted(image, dy, dx) for dy, dx in moves], axis=-1)

    # (c, view, K*K): the learnt mixture of neighbours in each view
    mixing = params['dep_conv1.weight'].reshape(channels, kernel**2, kernel**2)
    learnt = np.einsum('hwct,cst->hwcs', views, mixing)
    bias = params['dep_conv.bias'] + params['dep_conv1.bias']
    return views + learnt + bias.reshape(channels, kernel**2)


def slide_attention(
    x: np.ndarray, params: Params, heads: int, kernel: int = 3
) -> np.ndarray:
    """Attention of every place to its K x K neighbours.

    The bias, one number per head and neighbour, is added to the key itself
    (all its channels), not to the score. Queries are scaled by the root of
    the width a head would have without the reduction, C / heads. Each head's
    q, k and v lie next to one another in the qkv layer.

    Args:
        x: Normed input, (H, W, C).
        params: `qkv` (3 C / 4, C), `proj` (C, C / 4), each with bias,
            `dep_conv.bias`, `dep_conv1.{weight,bias}`,
            `relative_position_bias_table` (1, heads, 1, K*K, 1, 1).

    Returns:
        (H, W, C).
    """
    height, width, channels = x.shape
    qkv = linear(x, params['qkv.weight'], params['qkv.bias'])
    bias = params['relative_position_bias_table'].reshape(heads, kernel**2)
    out = []
    for head, own in enumerate(np.split(qkv, heads, axis=-1)):
        q, k, v = np.split(own, 3, axis=-1)  # (H, W, c)
        keys = neighbours(k, params, kernel) + bias[head]
        values = neighbours(v, params, kernel)
        scores = np.einsum('hwc,hwct->hwt', q, keys)
        weights = softmax(scores / np.sqrt(channels // heads))
        out.append(np.einsum('hwt,hwct->hwc', weights, values))
    out = np.concatenate(out, axis=-1)
    return linear(out, params['proj.weight'], params['proj.bias'])
