# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Neighbourhood attention: the op and its choice of backend."""

from torch import Tensor

from . import reference
from .dispatch import Backend, choose, explainable
from .precision import autocast_off
from .sdpa import neighborhood as sdpa
from .sizes import is_known
from .triton import neighborhood as triton_neighborhood
from .triton import probe
from .triton.common import yields

BACKENDS = (
    Backend(
        'triton',
        triton_neighborhood.neighborhood_attention,
        triton_neighborhood.not_supported,
        yields,
        probe.neighborhood_failure,
    ),
    Backend('sdpa', sdpa.neighborhood_attention),
    Backend('reference', reference.neighborhood_attention),
)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention of each position on the K x K positions around it.

    At a border the neighbourhood moves inside the map: query i of n sees the
    K positions from ``clamp(i - K // 2, 0, n - K)`` on (Hassani et al., CVPR
    2023, with dilation 1).

    Args:
        q: Queries (B, H, W, heads, d), H and W at least `kernel_size`.
        k: Keys, as `q`.
        v: Values, as `q`.
        bias_table: (heads, 2K - 1, 2K - 1), read at key - query + K - 1.
        kernel_size: K, odd.
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.
        backend: ``'triton'``, ``'sdpa'``, ``'reference'``, or None to choose
            automatically; ``mmdat.ops.explain`` gives the reasons.

    Returns:
        Tensor (B, H, W, heads, d).

    Raises:
        ValueError: The map is smaller than the neighbourhood, or the requested
            backend cannot run here.
    """
    args = _arguments(
        q, k, v, bias_table, kernel_size, scale=scale, dropout=dropout
    )
    run = choose('neighborhood_attention', BACKENDS, backend, *args)
    with autocast_off(q):
        return run(*args)


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> tuple:
    """What backends take."""
    if is_known(*q.shape[1:3]) and min(q.shape[1:3]) < kernel_size:
        raise ValueError(
            f'A map must be at least as large as the neighbourhood; got '
            f'{tuple(q.shape[1:3])} for kernel_size={kernel_size}, pad it.'
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return q, k, v, bias_table, kernel_size, scale, dropout


explainable(neighborhood_attention, BACKENDS, _arguments)
