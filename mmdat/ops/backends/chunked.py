# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention for a few queries at a time.

What grows with (queries x keys), the bias and the scores, exists for one
chunk only, and fused attention does the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..position_bias import PositionBias, TableBias
from ..precision import must_repeat_exactly

# Scores of one chunk, all heads together: few enough for a CPU's cache, and
# enough for the 192 queries from which fused attention takes larger steps.
CHUNK_SCORES = 2**22


def declines(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Why this backend cannot run, or None."""
    if isinstance(bias, TableBias) and must_repeat_exactly(q):
        return 'reading a table has no deterministic backward pass on a GPU.'
    return None


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.deformable_attention`."""
    batch, heads, queries, _ = q.shape
    if bias is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scale
        )
    chunk = max(CHUNK_SCORES // (batch * heads * k.shape[2]), 64)
    outs = []
    for start in range(0, queries, chunk):
        stop = min(start + chunk, queries)
        scores = bias.rows(start, stop).to(q.dtype)
        outs.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop],
                k,
                v,
                attn_mask=scores.expand(batch, -1, -1, -1),
                dropout_p=dropout,
                scale=scale,
            )
        )
    return torch.cat(outs, dim=2)
