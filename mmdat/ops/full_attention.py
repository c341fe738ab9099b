# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention of all queries on all keys, without a bias."""

import torch.nn.functional as F
from torch import Tensor

from . import reference
from .custom_op import is_transformed


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0
) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v``, by PyTorch's fused attention.

    Args:
        q: Queries (B, heads, Q, d).
        k: Keys (B, heads, K, d).
        v: Values, as `k`.
        dropout: Probability of dropping an attention weight.

    Returns:
        Tensor (B, heads, Q, d).
    """
    if is_transformed():  # by derivatives that fused attention lacks
        return reference.attention(q, k, v, None, q.shape[-1] ** -0.5, dropout)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
