# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention of learnt queries (QnA); no released weights use it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def learned_query_attention(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    gain: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """QnA: a few learnt queries look at every patch (CVPR 2022).

    Args:
        queries: Learnt queries (n, heads, d), shared by all positions.
        k: Keys (B, H, W, heads, d).
        v: Values, as `k`.
        bias: Position bias on the scores (K * K, n, heads).
        gain: Factor on the attention weights (K * K, n, heads).
        scale: Factor on the scores; ``d ** -0.5`` if None.

    Returns:
        Tensor (B, H, W, heads, d), the sum over the n queries. Positions
        outside the map are no keys.
    """
    batch, height, width, heads, dim = k.shape
    patch, number = bias.shape[:2]
    size = round(patch**0.5)
    scale = dim**-0.5 if scale is None else scale

    def patches(x: Tensor) -> Tensor:
        """(B, H, W, c) to (B, H, W, K K, c), zeros outside."""
        channels = x.shape[-1]
        x = F.unfold(x.permute(0, 3, 1, 2), size, padding=size // 2)
        x = x.view(batch, channels, patch, height, width)
        return x.permute(0, 3, 4, 2, 1)

    scores = scale * torch.einsum('nhd,byxhd->byxnh', queries, k)
    scores = patches(scores.flatten(-2)).unflatten(-1, (number, heads))
    inside = patches(torch.ones_like(k[..., 0, :1])) > 0
    scores = (scores + bias).masked_fill(~inside[..., None], float('-inf'))
    weights = (scores.softmax(3) * gain).sum(-2)  # B, H, W, K K, heads
    values = patches(v.flatten(-2)).unflatten(-1, (heads, dim))
    return (weights[..., None] * values).sum(3)
