# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention for a few queries at a time.

The bias and the scores, which grow with (queries x keys), exist for one chunk
only.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from torch import Tensor

from ..custom_op import is_compiling, is_exporting
from ..position_bias import PositionBias, TableBias
from ..precision import must_repeat_exactly

# Scores of one chunk, all heads together: few enough for a CPU's cache, and
# enough for the 192 queries from which fused attention takes larger steps.
CHUNK_SCORES = 2**22
# The same on other devices, where a chunk costs a dozen kernel launches. A
# score takes about 14 bytes, with its bias in float32, the displacements of a
# group of heads, and the gradients of both: 1 GB.
DEVICE_CHUNK_SCORES = 2**26
# The fewest queries of a chunk.
LEAST_QUERIES = 64
# The most chunks in one graph of a compiler.
MAX_COMPILED_CHUNKS = 64


def not_supported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Returns why this backend cannot run, or None."""
    if isinstance(bias, TableBias) and must_repeat_exactly(q):
        return 'reading a table has no deterministic backward pass on a GPU.'
    return None


def chunk_queries(q: Tensor, keys: int) -> int:
    """The number of queries (B, heads, Q, d) of a chunk.

    A compiler takes the loop over chunks apart. It gets few of them, and a
    power of two, since another number of chunks is another graph.
    """
    batch, heads, queries = q.shape[:3]
    if is_compiling():
        chunks = 1
        while (
            chunks < MAX_COMPILED_CHUNKS
            and chunks * DEVICE_CHUNK_SCORES < batch * heads * queries * keys
        ):
            chunks *= 2
        return -(-queries // chunks)
    in_cache = q.device.type == 'cpu'
    scores = CHUNK_SCORES if in_cache else DEVICE_CHUNK_SCORES
    return max(scores // (batch * heads * keys), LEAST_QUERIES)


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.deformable_attention``.

    On a GPU the backward pass computes the bias of a chunk again. On a CPU it
    is stored, because the separable backend trains on all but small maps
    there.
    """
    if bias is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scale
        )
    attend = partial(_attend, k=k, v=v, bias=bias, scale=scale, p=dropout)
    if is_exporting():  # a graph for all sizes has no chunks
        return attend(q, 0)
    if _recomputes(q):
        attend = partial(
            cp.checkpoint,
            attend,
            use_reentrant=False,
            preserve_rng_state=dropout > 0,
        )
    return _in_chunks(attend, q, k)


def _in_chunks(
    attend: Callable[[Tensor, int], Tensor], q: Tensor, k: Tensor
) -> Tensor:
    """Attention of all queries, some at a time."""
    queries = q.shape[2]
    chunk = chunk_queries(q, k.shape[2])
    if queries <= chunk:
        return attend(q, 0)
    outs, start = [], 0
    while start < queries:
        size = min(chunk, queries - start)
        outs.append(attend(q.narrow(2, start, size), start))
        start += chunk
    return torch.cat(outs, dim=2)


def _recomputes(q: Tensor) -> bool:
    """Whether the backward pass computes chunks again."""
    return (
        q.device.type not in ('cpu', 'meta')
        and torch.is_grad_enabled()
        # A compiler decides what to store.
        and not is_compiling()
        # Transforms of torch.func know no checkpoints.
        and not torch._C._are_functorch_transforms_active()
    )


def _attend(
    q: Tensor,
    start: int,
    k: Tensor,
    v: Tensor,
    bias: PositionBias,
    scale: float,
    p: float,
) -> Tensor:
    """Attention of some queries, of which `q` holds those from `start` on."""
    scores = bias.rows(start, start + q.shape[2]).to(q.dtype)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=scores.expand(q.shape[0], -1, -1, -1),
        dropout_p=p,
        scale=scale,
    )
