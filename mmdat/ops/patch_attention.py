# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention of each position on the K x K patch around it, two ways.

Positions outside the map read zeros. No released weights use these functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .sizes import unflatten


def patches(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) to the patch of each position, (B, H, W, K K, C)."""
    batch, height, width, channels = x.shape
    x = F.unfold(x.permute(0, 3, 1, 2), size, padding=size // 2)
    x = x.view(batch, channels, size**2, height, width)
    return x.permute(0, 3, 4, 2, 1)


def slide_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Slide attention: each query has different keys (CVPR 2023).

    Args:
        q: Queries (B, H, W, heads, d).
        k: Keys (B, H, W, heads, K * K, d).
        v: Values, as `k`.
        bias: Position bias on the keys (heads, K * K).
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.

    Returns:
        Tensor (B, H, W, heads, d).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k = k + bias[..., None]
    weights = (scale * (q[..., None, :] * k).sum(-1)).softmax(-1)
    if dropout:  # see mmdat.ops.reference.attention
        weights = F.dropout(weights, dropout)
    return (weights[..., None] * v).sum(-2)


def learned_query_attention(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    gain: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """QnA: a few learnt queries attend to every patch (CVPR 2022).

    Args:
        queries: Learnt queries (n, heads, d), shared by all positions.
        k: Keys (B, H, W, heads, d).
        v: Values, as `k`.
        bias: Position bias on the scores (K * K, n, heads).
        gain: Factor on the attention weights (K * K, n, heads).
        scale: Factor on the scores; ``d ** -0.5`` if None.

    Returns:
        Tensor (B, H, W, heads, d), the sum over the n queries. Positions
        outside the map are not keys.
    """
    heads, dim = k.shape[3:]
    patch, number = bias.shape[:2]
    size = round(int(patch) ** 0.5)
    scale = dim**-0.5 if scale is None else scale
    scores = scale * torch.einsum('nhd,byxhd->byxnh', queries, k)
    scores = patches(scores.flatten(-2), size)
    scores = unflatten(scores, -1, (number, heads))
    inside = patches(torch.ones_like(k[..., 0, :1]), size) > 0
    scores = (scores + bias).masked_fill(~inside[..., None], float('-inf'))
    weights = (scores.softmax(3) * gain).sum(-2)  # B, H, W, K K, heads
    values = unflatten(patches(v.flatten(-2), size), -1, (heads, dim))
    return (weights[..., None] * values).sum(3)
