# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Q: learnt queries (Arar et al., "Learned Queries for Efficient Local
Attention", CVPR 2022)."""

import numpy as np

from .layers import linear
from .layout import Params

ACTIVATIONS = {
    'exp': np.exp,
    'sigmoid': lambda x: 1 / (1 + np.exp(-x)),
    'linear': lambda x: x,
}


def qna_attention(
    x: np.ndarray, params: Params, heads: int, activation: str = 'exp'
) -> np.ndarray:
    """Learnt queries, shared by all places, attend to K x K windows.

    For place p, query i and head m, with s the score of a key and b the bias
    of its place in the window, the weights a(s) a(b) are normalised over the
    window (a = exp: a softmax of s + b), then multiplied by a learnt scale
    per place in the window, and applied to the values. Keys outside the map
    do not take part. The results of the queries are added.

    The authors' code passes no padding, so that its output is smaller than
    its input and only K = 1 runs there; the window is centred here, as in the
    paper.

    Args:
        x: Normed input, (H, W, C).
        params: `q_param` (queries, C), `proj_{k,v}.weight` (C, C),
            `proj_out.weight` (C, C, 1, 1), `attn_scale` (1, 1, K*K, queries *
            heads), `rpb_table` (K*K, queries * heads), queries before heads.
        heads: Attention heads.
        activation: a, a key of ACTIVATIONS.

    Returns:
        (H, W, C).
    """
    activate = ACTIVATIONS[activation]
    height, width, channels = x.shape
    n_queries, head_dim = len(params['q_param']), channels // heads
    queries = params['q_param'].reshape(n_queries, heads, head_dim)
    bias = params['rpb_table'].reshape(-1, n_queries, heads)
    scale = params['attn_scale'].reshape(-1, n_queries, heads)
    kernel = round(len(bias) ** 0.5)
    half = kernel // 2

    k = linear(x, params['proj_k.weight'])
    k = k.reshape(height, width, heads, head_dim)
    v = linear(x, params['proj_v.weight'])
    v = v.reshape(height, width, heads, head_dim)
    scores = np.einsum('qmd,yxmd->yxqm', queries, k) / np.sqrt(head_dim)

    out = np.zeros((height, width, heads, head_dim))
    for y in range(height):
        for x_ in range(width):
            total = np.zeros((n_queries, heads))
            mixed = np.zeros((n_queries, heads, head_dim))
            for place in range(kernel**2):
                row = y + place // kernel - half
                column = x_ + place % kernel - half
                if not (0 <= row < height and 0 <= column < width):
                    continue
                weight = activate(scores[row, column]) * activate(bias[place])
                total += weight
                mixed += (weight * scale[place])[..., None] * v[row, column]
            out[y, x_] = (mixed / total[..., None]).sum(axis=0)
    return linear(
        out.reshape(height, width, channels), params['proj_out.weight']
    )
