# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention: its two ops, each with a choice of backend."""

from torch import Tensor

from . import reference
from .dispatch import Backend, choose, explainable
from .position_bias import PositionBias
from .precision import autocast_off
from .sampling import sample_plainly
from .sdpa import deformable as sdpa
from .separable import attention as separable
from .sizes import unflatten
from .triton import deformable as triton_deformable
from .triton import probe
from .triton import sampling as triton_sampling
from .triton.common import yields

BACKENDS = (
    Backend(
        'triton',
        triton_deformable.deformable_attention,
        triton_deformable.not_supported,
        yields,
        probe.deformable_failure,
    ),
    Backend(
        'separable',
        separable.deformable_attention,
        separable.not_supported,
        separable.slower,
    ),
    Backend('sdpa', sdpa.deformable_attention, sdpa.not_supported),
    Backend('reference', reference.deformable_attention),
)
SAMPLERS = (
    Backend(
        'triton',
        triton_sampling.sample_at_points,
        triton_sampling.not_supported,
        yields,
        probe.sampling_failure,
    ),
    Backend('sdpa', sample_plainly),
    Backend('reference', sample_plainly),
)


def sample_at_points(x: Tensor, points_yx: Tensor) -> Tensor:
    """Reads each channel group of a map at the points of that group.

    Bilinear, zeros outside the map, ``align_corners=True`` (DAT, eq. 4).

    Args:
        x: Map (B, H, W, C), of any floating type.
        points_yx: Positions (B, groups, Hk, Wk, 2) in [-1, 1], float32 or
            wider.

    Returns:
        Samples (B, Hk, Wk, C) in the type of `x`.
    """
    run = choose('sample_at_points', SAMPLERS, None, x, points_yx)
    return run(x, points_yx)


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention of a map of queries on a few shared, sampled keys.

    ``softmax(scale q k^T + bias) v`` (DAT, eq. 5 to 8). Under autocast too,
    the position bias is computed in float32 or wider.

    Args:
        q: Queries (B, H, W, heads, d).
        k: Keys (B, Hk, Wk, heads, d), projected from the sampled features.
        v: Values, as `k`.
        bias: A bias of ``mmdat.ops.position_bias``, or None.
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.
        backend: ``'triton'``, ``'separable'``, ``'sdpa'``, ``'reference'``,
            or None to choose automatically; ``mmdat.ops.explain`` gives the
            reasons.

    Returns:
        Tensor (B, H, W, heads, d).

    Raises:
        ValueError: The requested backend cannot run here.
    """
    args = _arguments(q, k, v, bias, scale=scale, dropout=dropout)
    run = choose('deformable_attention', BACKENDS, backend, *args)
    with autocast_off(q):
        out = run(*args)  # B, heads, H W, d
    return unflatten(out.transpose(1, 2), 1, q.shape[1:3])


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: PositionBias | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> tuple:
    """What backends take: heads before pixels, and a scale."""
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return q, k, v, bias, scale, dropout


explainable(deformable_attention, BACKENDS, _arguments)
explainable(sample_at_points, SAMPLERS, lambda *args: args)
