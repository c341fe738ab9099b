# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Slide attention; no released weights use it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def slide_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: Tensor,
    kernel_bias: Tensor,
    bias: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Slide attention: neighbours by depthwise convolution (CVPR 2023).

    A fixed convolution that shifts the map brings each neighbour in place; a
    learnt one beside it deforms the shift. Their sum is one convolution.

    Args:
        q: Queries (B, H, W, heads, d).
        k: Keys, as `q`.
        v: Values, as `q`.
        kernel: Learnt kernels (d * K * K, 1, K, K), added to the shifts.
        kernel_bias: (d * K * K,).
        bias: Position bias on the keys (heads, K * K).
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.

    Returns:
        Tensor (B, H, W, heads, d).
    """
    batch, height, width, heads, dim = q.shape
    size = kernel.shape[-1]
    shifts = torch.eye(size**2, dtype=kernel.dtype, device=kernel.device)
    shifts = shifts.view(1, size**2, 1, size, size)
    kernel = kernel + shifts.expand(dim, -1, -1, -1, -1).flatten(0, 1)

    def neighbours(x: Tensor) -> Tensor:
        x = x.permute(0, 3, 4, 1, 2).flatten(0, 1)  # B heads, d, H, W
        x = F.conv2d(x, kernel, kernel_bias, padding=size // 2, groups=dim)
        x = x.view(batch, heads, dim, size**2, height, width)
        return x.permute(0, 4, 5, 1, 3, 2)  # B, H, W, heads, K K, d

    scale = dim**-0.5 if scale is None else scale
    keys = neighbours(k) + bias[..., None]
    weights = (scale * (q[..., None, :] * keys).sum(-1)).softmax(-1)
    weights = F.dropout(weights, dropout)
    return (weights[..., None] * neighbours(v)).sum(-2)
