# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention in (shifted) windows: the op and its choice of backend."""

import torch
from torch import Tensor

from . import reference
from .constants import constant
from .dispatch import Backend, choose, explainable, wanted
from .precision import autocast_off
from .sdpa import windows as sdpa
from .windows import WindowLayout

BACKENDS = (
    Backend('sdpa', sdpa.window_attention),
    Backend('reference', reference.window_attention),
)


def chosen_by_name(backend: str | None) -> bool:
    """Whether a backend of this op is requested, here or for all ops."""
    name = wanted(backend)
    return any(name == known.name for known in BACKENDS)


def window_bias(bias_table: Tensor, window_size: int) -> Tensor:
    """The bias of all pairs of a window, read from the table.

    Args:
        bias_table: ((2w - 1)^2, heads), the move query - key row-major.
        window_size: w.

    Returns:
        Bias (heads, w^2, w^2), query by key.
    """
    index = _pairs(window_size, bias_table.device)
    bias = bias_table[index].unflatten(0, [window_size**2] * 2)
    return bias.permute(2, 0, 1)


@constant
def _pairs(window_size: int, device: torch.device) -> Tensor:
    """Where the table has each pair of a window, (w^4,)."""
    n = torch.arange(window_size, device=device)
    move = n[:, None] - n + window_size - 1  # query, key
    index = (
        move[:, None, :, None] * (2 * window_size - 1) + move[None, :, None]
    )  # qy, qx, ky, kx
    return index.flatten()


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    layout: WindowLayout,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention within the windows of a map (Liu et al., ICCV 2021).

    In a rolled map, positions that were not neighbours do not attend to each
    other.

    Args:
        q: Queries (n, B, w * w, heads, d), cut by
            [`split_windows`][mmdat.ops.windows.split_windows].
        k: Keys, as `q`.
        v: Values, as `q`.
        bias_table: ((2w - 1)^2, heads), see [`window_bias`][].
        layout: How the map was cut.
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.
        backend: ``'sdpa'``, ``'reference'``, or None to choose automatically;
            [`explain`][mmdat.ops.explain] gives the reasons.

    Returns:
        Tensor (n, B, w * w, heads, d).

    Raises:
        ValueError: The requested backend cannot run here.
    """
    args = _arguments(
        q, k, v, bias_table, layout, scale=scale, dropout=dropout
    )
    run = choose('window_attention', BACKENDS, backend, *args)
    with autocast_off(q):
        return run(*args)


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    layout: WindowLayout,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> tuple:
    """What backends take."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (
        q,
        k,
        v,
        window_bias(bias_table, layout.size),
        layout,
        scale,
        dropout,
    )


explainable(window_attention, BACKENDS, _arguments)
