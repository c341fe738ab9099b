# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Patch embedding (stride 4) and down-projection (stride 2)."""

import numpy as np

from .layers import conv2d, gelu, layer_norm
from .layout import Params


def _conv_norm(x, params, conv, norm, stride, padding):
    out = conv2d(
        x,
        params[f'{conv}.weight'],
        params.get(f'{conv}.bias'),
        stride,
        padding,
    )
    return layer_norm(
        out, params[f'{norm}.norm.weight'], params[f'{norm}.norm.bias']
    )


def patch_embed(image: np.ndarray, params: Params, family: str) -> np.ndarray:
    """(H, W, 3) -> (H / 4, W / 4, C).

    DAT: a 4x4 convolution of stride 4 and a layer norm. DAT++: two 3x3
    convolutions of stride 2, padded by 1, each with a layer norm, GELU
    between them.
    """
    if family == 'dat':
        return _conv_norm(image, params, '0', '1', stride=4, padding=0)
    hidden = _conv_norm(image, params, '0', '1', stride=2, padding=1)
    return _conv_norm(gelu(hidden), params, '3', '4', stride=2, padding=1)


def down_project(x: np.ndarray, params: Params, family: str) -> np.ndarray:
    """(H, W, C) -> (H / 2, W / 2, C').

    A convolution of stride 2 without bias, 2x2 in DAT and 3x3 padded by 1 in
    DAT++, and a layer norm.
    """
    padding = 0 if family == 'dat' else 1
    return _conv_norm(x, params, '0', '1', stride=2, padding=padding)
