# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable multi-head attention: the op and its choice of backend."""

from torch import Tensor

from .backends import chunked, reference, separable, triton_deformable
from .dispatch import Backend, choose, reasons
from .position_bias import PositionBias
from .precision import autocast_off

BACKENDS = (
    Backend(
        'triton',
        triton_deformable.deformable_attention,
        triton_deformable.declines,
    ),
    Backend(
        'separable',
        separable.deformable_attention,
        separable.declines,
        separable.yields,
    ),
    Backend('chunked', chunked.deformable_attention, chunked.declines),
    Backend('reference', reference.deformable_attention),
)


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
    explain: bool = False,
) -> Tensor | dict[str, str | None]:
    """Attention of a map of queries on a few shared, sampled keys.

    ``softmax(scale q k^T + bias) v`` (DAT, eq. 5 to 8). The position bias is
    computed in float32 or wider also under autocast.

    Args:
        q: Queries (B, H, W, heads, d).
        k: Keys (B, Hk, Wk, heads, d), projected from the sampled features.
        v: Values, as `k`.
        bias: A bias of :mod:`mmdat.ops.position_bias`, or None.
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.
        backend: ``'triton'``, ``'separable'``, ``'chunked'``,
            ``'reference'``, or None to choose.
        explain: Return the reasons why each backend declines instead.

    Returns:
        Tensor (B, H, W, heads, d).

    Raises:
        ValueError: The backend asked for cannot run here.
    """
    height, width = q.shape[1:3]
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    args = q, k, v, bias, scale, dropout
    if explain:
        return reasons('deformable_attention', BACKENDS, *args)
    run = choose('deformable_attention', BACKENDS, backend, *args)
    with autocast_off(q):
        out = run(*args)  # B, heads, H W, d
    return out.transpose(1, 2).unflatten(1, (height, width))
