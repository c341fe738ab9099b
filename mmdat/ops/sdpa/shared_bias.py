# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention within many small sets that share one bias, as windows do.

PyTorch's fused attention accepts the bias, but on a CPU it has no gradient for
it and stores the weights of all pairs for the backward pass. Here the backward
pass computes them again, for a few sets at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..custom_op import (
    HAS_OPERATORS,
    Operator,
    is_exporting,
    operator,
    recompute_in_backward,
)

# Scores of the sets that the backward pass computes together.
CHUNK_SCORES = 2**20


def wants_recomputing(*tensors: Tensor, dropout: float) -> bool:
    """Whether PyTorch would store the weights of all pairs."""
    return (
        torch.is_grad_enabled()
        and not is_exporting()
        and not dropout
        and HAS_OPERATORS
        and tensors[0].device.type == 'cpu'
        and any(t.requires_grad for t in tensors)
    )


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass of ``softmax(scale q k^T + bias) v``.

    Args:
        grad: Gradient of the output (n, heads, Q, d).
        q: Queries, as `grad`.
        k: Keys (n, heads, K, d).
        v: Values, as `k`.
        bias: (heads, Q, K).
        scale: Factor on the scores.

    Returns:
        Gradients of q, k, v and the bias.
    """
    chunk = max(CHUNK_SCORES // bias.numel(), 1)
    q_grads, k_grads, v_grads = [], [], []
    bias_grad = torch.zeros_like(bias)
    for start in range(0, len(q), chunk):
        part = slice(start, start + chunk)
        qs, ks, vs, gs = q[part] * scale, k[part], v[part], grad[part]
        weights = attention_weights(qs, ks, bias)
        v_grads.append(weights.mT @ gs)
        d = score_gradients(gs, vs, weights)
        bias_grad += d.sum(0)
        k_grads.append(d.mT @ qs)
        q_grads.append((d @ ks).mul_(scale))
    q_grad, k_grad, v_grad = (
        torch.cat(grads) for grads in (q_grads, k_grads, v_grads)
    )
    return q_grad, k_grad, v_grad, bias_grad


def attention_weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """``softmax(q k^T + bias)``, (n, heads, Q, K)."""
    return (q @ k.mT).add_(bias).softmax(-1)


def score_gradients(grad: Tensor, v: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the input of the softmax, as `weights`."""
    d = grad @ v.mT
    return d.sub_((weights * d).sum(-1, keepdim=True)).mul_(weights)


@operator('small_bias_attention')
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> Tensor:
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias[None], scale=scale
    )
    # As fused attention leaves it; here whatever attention was taken.
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _fake(q, *_):
    n, heads, queries, dim = q.shape
    return q.new_empty(n, queries, heads, dim).transpose(1, 2)


recompute_in_backward(
    _attention,
    Operator('small_bias_attention_backward', gradients),
    fake=_fake,
    twice=True,
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(scale q k^T + bias) v`` for n sets.

    Args:
        q: Queries (n, heads, Q, d).
        k: Keys (n, heads, K, d).
        v: Values, as `k`.
        bias: (heads, Q, K).
        scale: Factor on the scores.
        dropout: Probability of dropping an attention weight.

    Returns:
        Tensor (n, heads, Q, d).
    """
    if wants_recomputing(q, k, v, bias, dropout=dropout):
        return _attention(q, k, v, bias, scale)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias[None], dropout_p=dropout, scale=scale
    )
