# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The two MLPs."""

import numpy as np

from .layers import conv2d, depthwise_conv2d, gelu, linear
from .layout import Params


def mlp(x: np.ndarray, params: Params) -> np.ndarray:
    """DAT: linear to 4 C, GELU, linear back. (H, W, C) -> (H, W, C)."""
    hidden = linear(
        x, params['chunk.linear1.weight'], params['chunk.linear1.bias']
    )
    return linear(
        gelu(hidden),
        params['chunk.linear2.weight'],
        params['chunk.linear2.bias'],
    )


def conv_mlp(x: np.ndarray, params: Params) -> np.ndarray:
    """DAT++: between the two, a residual depthwise 3x3 convolution."""
    hidden = conv2d(x, params['linear1.0.weight'], params['linear1.0.bias'])
    hidden = hidden + depthwise_conv2d(
        hidden, params['dwc.weight'], params['dwc.bias']
    )
    return conv2d(
        gelu(hidden), params['linear2.0.weight'], params['linear2.0.bias']
    )
