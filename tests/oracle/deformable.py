# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""D: deformable attention (DAT, sec. 3.2; DAT++, arXiv 2309.01430)."""

import numpy as np

from .bilinear import sample_points
from .coordinates import deformed_points_yx, query_yx
from .layers import (
    attend,
    avg_pool2d,
    conv2d,
    depthwise_conv2d,
    gelu,
    layer_norm,
    linear,
    merge_heads,
    split_heads,
)
from .layout import Params, subset
from .position_bias import log_continuous_bias, table_bias

BIAS_KINDS = ('table', 'fixed', 'depthwise-conv', 'log-continuous', 'none')


def offset_network(q: np.ndarray, params: Params, stride: int) -> np.ndarray:
    """Offsets of one group.

    Depthwise convolution (k x k, padded by k // 2, or not at all where
    k == stride), layer norm, GELU, 1x1 convolution to (y, x) without bias.

    Args:
        q: The group's channels of the queries, (H, W, C / groups).
        params: The entries of `conv_offset`, shared by the groups.

    Returns:
        (Hk, Wk, 2), before any range is applied.
    """
    kernel = params['0.weight'].shape[-1]
    padding = 0 if kernel == stride else kernel // 2
    hidden = depthwise_conv2d(
        q, params['0.weight'], params['0.bias'], stride, padding
    )
    hidden = layer_norm(hidden, params['1.norm.weight'], params['1.norm.bias'])
    return conv2d(gelu(hidden), params['3.weight'])


def deformable_attention(
    x: np.ndarray,
    params: Params,
    heads: int,
    groups: int,
    stride: int,
    family: str,
    range_factor: float,
    offsets: bool = True,
    bias: str = 'table',
) -> tuple[np.ndarray, np.ndarray]:
    """One deformable attention block, from normed input to projected output.

    Args:
        x: (H, W, C).
        params: `proj_{q,k,v,out}.{weight,bias}`, `conv_offset.*`, and, as the
            bias needs, `rpe_table` (heads, 2 Sh - 1, 2 Sw - 1) or (heads,
            H W, Ns), or `rpe_table.*`.
        heads: Attention heads.
        groups: Offset groups; a divisor of `heads`.
        stride: Of the key grid relative to the queries, r.
        family: 'dat' or 'dat_pp', how coordinates are counted.
        range_factor: s; negative for none.
        offsets: False takes keys from average pooling by r instead of
            sampling (r must divide H and W). The authors' code uses no bias
            then; asking for one here reads it at the undeformed points.
        bias: One of BIAS_KINDS.

    Returns:
        The output, (H, W, C), and the deformed points, (groups, Hk, Wk, 2).

    Raises:
        ValueError: Unknown bias; a map that the kernel or stride does not
            fit.
    """
    if bias not in BIAS_KINDS:
        raise ValueError(f'bias must be one of {BIAS_KINDS}, not {bias!r}')
    height, width, channels = x.shape
    q_map = linear(x, params['proj_q.weight'], params['proj_q.bias'])

    # Keys: one set of places and of sampled features per group.
    points, sampled = [], []
    for group in np.split(np.arange(channels), groups):
        if offsets:
            offset = offset_network(
                q_map[..., group], subset(params, 'conv_offset.'), stride
            )
            moved = deformed_points_yx(offset, family, range_factor)
            sampled.append(sample_points(x[..., group], moved))
        else:
            sampled.append(avg_pool2d(x[..., group], stride))
            still = np.zeros(sampled[-1].shape[:2] + (2,))
            moved = deformed_points_yx(still, family, range_factor)
        points.append(moved)
    points_yx = np.stack(points)  # (g, Hk, Wk, 2)
    sampled = np.concatenate(sampled, axis=-1).reshape(-1, channels)

    q = split_heads(q_map.reshape(-1, channels), heads)  # (h, HW, d)
    k = split_heads(
        linear(sampled, params['proj_k.weight'], params['proj_k.bias']), heads
    )  # (h, Ns, d)
    v = split_heads(
        linear(sampled, params['proj_v.weight'], params['proj_v.bias']), heads
    )  # (h, Ns, d)

    queries = query_yx(height, width, family).reshape(-1, 2)
    flat_points = points_yx.reshape(groups, -1, 2)
    if bias == 'table':
        score_bias = table_bias(params['rpe_table'], queries, flat_points)
    elif bias == 'fixed':
        score_bias = params['rpe_table']
        if score_bias.shape != (heads, q.shape[1], k.shape[1]):
            raise ValueError(
                'a fixed bias table has one entry per head, query and key: '
                f'{(heads, q.shape[1], k.shape[1])}, not {score_bias.shape}'
            )
    elif bias == 'log-continuous':
        score_bias = log_continuous_bias(
            subset(params, 'rpe_table.'), queries, flat_points
        )
    else:
        score_bias = 0.0

    out = merge_heads(attend(q, k, v, score_bias))
    out = out.reshape(height, width, channels)
    if bias == 'depthwise-conv':
        out = out + depthwise_conv2d(
            q_map, params['rpe_table.weight'], params['rpe_table.bias']
        )
    out = linear(out, params['proj_out.weight'], params['proj_out.bias'])
    return out, points_yx
