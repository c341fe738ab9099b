# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention in (shifted) windows: the op and its choice of backend."""

import torch
from torch import Tensor

from .backends import reference, tiled_windows
from .dispatch import Backend, choose, reasons
from .precision import autocast_off
from .windows import WindowLayout

BACKENDS = (
    Backend('tiled', tiled_windows.window_attention),
    Backend('reference', reference.window_attention),
)


def window_bias(bias_table: Tensor, window_size: int) -> Tensor:
    """Spreads the table over all pairs of a window.

    Args:
        bias_table: ((2w - 1)^2, heads), the move query - key row-major.
        window_size: w.

    Returns:
        Bias (heads, w^2, w^2), query by key.
    """
    n = torch.arange(window_size, device=bias_table.device)
    move = n[:, None] - n + window_size - 1  # query, key
    index = (
        move[:, None, :, None] * (2 * window_size - 1) + move[None, :, None]
    )  # qy, qx, ky, kx
    bias = bias_table[index.flatten()].unflatten(0, [window_size**2] * 2)
    return bias.permute(2, 0, 1)


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
    explain: bool = False,
) -> Tensor | dict[str, str | None]:
    """Attention within the windows of a map (Liu et al., ICCV 2021).

    In a rolled map positions that are not neighbours do not see each other.

    Args:
        q: Queries (n, B, w * w, heads, d), cut by
            :func:`mmdat.ops.windows.split_windows`.
        k: Keys, as `q`.
        v: Values, as `q`.
        bias_table: ((2w - 1)^2, heads), see :func:`window_bias`.
        layout: How the map was cut.
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.
        backend: ``'tiled'``, ``'reference'``, or None to choose.
        explain: Return the reasons why each backend declines instead.

    Returns:
        Tensor (n, B, w * w, heads, d).

    Raises:
        ValueError: The backend asked for cannot run here.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bias = window_bias(bias_table, layout.size)
    args = q, k, v, bias, layout, scale, dropout
    if explain:
        return reasons('window_attention', BACKENDS, *args)
    run = choose('window_attention', BACKENDS, backend, *args)
    with autocast_off(q):
        return run(*args)
