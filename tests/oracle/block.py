# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""One block: local perception, attention, MLP, with their residuals."""

import numpy as np

from .deformable import deformable_attention
from .full import full_attention
from .layers import depthwise_conv2d, layer_norm
from .layout import Params, subset
from .mlp import conv_mlp, mlp
from .neighborhood import neighborhood_attention
from .pyramid import pyramid_attention
from .qna import qna_attention
from .slide import slide_attention
from .variants import Variant
from .window import shifted_window_attention, window_attention


def attention(
    x: np.ndarray, params: Params, variant: Variant, stage: int, kind: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """The attention of a kind on a normed map.

    Returns:
        (H, W, C), and the deformed points (groups, Hk, Wk, 2) if kind is D.
    """
    heads = variant.heads[stage]
    if kind == 'D':
        return deformable_attention(
            x,
            params,
            heads,
            variant.groups[stage],
            variant.strides[stage],
            variant.family,
            variant.range_factor,
            variant.offsets,
            variant.bias,
        )
    if kind == 'L':
        return window_attention(x, params, heads, variant.window), None
    if kind == 'S':
        return shifted_window_attention(x, params, heads, variant.window), None
    if kind == 'N':
        return neighborhood_attention(x, params, heads), None
    if kind == 'P':
        return pyramid_attention(x, params, heads), None
    if kind == 'E':
        return slide_attention(x, params, heads), None
    if kind == 'F':
        return full_attention(x, params, heads), None
    if kind == 'Q':
        return qna_attention(x, params, variant.qna_heads[stage]), None
    raise ValueError(f'unknown kind of attention {kind!r}')


def block(
    x: np.ndarray, params: Params, variant: Variant, stage: int, index: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """One block in eval mode.

    DAT++ first adds a depthwise 3x3 convolution (the local perception unit).
    Then x + attention(norm(x)) and x + mlp(norm(x)), each branch times its
    layer scale if it has one; or, for a convolution block X, x +
    mlp(norm(conv(x))).

    Args:
        x: (H, W, C).
        params: The entries of the stage, with their published names.
        stage: Index of the stage, from 0.
        index: Of the block in its stage.

    Returns:
        (H, W, C), and the deformed points or None.
    """
    kind = variant.stages[stage][index]
    own = {
        name: subset(params, f'{name}.{index}.')
        for name in ('local_perception_units', 'attns', 'mlps', 'ln_cnvnxt')
    }
    if variant.layers == 'dat_pp':
        unit = own['local_perception_units']
        x = x + depthwise_conv2d(x, unit['weight'], unit['bias'])

    feed_forward = mlp if variant.layers == 'dat' else conv_mlp
    if kind == 'X':
        hidden = depthwise_conv2d(
            x, own['attns']['weight'], own['attns']['bias']
        )
        hidden = layer_norm(
            hidden,
            own['ln_cnvnxt']['norm.weight'],
            own['ln_cnvnxt']['norm.bias'],
        )
        return x + feed_forward(hidden, own['mlps']), None

    def norm(name, value):
        own_norm = subset(params, f'layer_norms.{name}.norm.')
        return layer_norm(value, own_norm['weight'], own_norm['bias'])

    def scale(name):
        return subset(params, f'layer_scales.{name}.').get('weight', 1.0)

    first, second = 2 * index, 2 * index + 1
    branch, points_yx = attention(
        norm(first, x), own['attns'], variant, stage, kind
    )
    x = x + scale(first) * branch
    branch = feed_forward(norm(second, x), own['mlps'])
    return x + scale(second) * branch, points_yx
