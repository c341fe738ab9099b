# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention in (shifted) windows: the op and its choice of backend."""

import torch
from torch import Tensor

from .backends import reference, tiled
from .dispatch import Backend, choose
from .precision import autocast_off

BACKENDS = (
    Backend('tiled', tiled.window_attention),
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
    window_size: int,
    shift: int = 0,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Attention within the windows of a map (Liu et al., ICCV 2021).

    With a shift the map is rolled by it to the top left, and positions which
    are not neighbours in the map do not see each other.

    Args:
        q: Queries (B, H, W, heads, d), H and W multiples of `window_size`.
        k: Keys, as `q`.
        v: Values, as `q`.
        bias_table: ((2w - 1)^2, heads), see :func:`window_bias`.
        window_size: w.
        shift: 0 to w - 1 positions.
        scale: Factor on the scores; ``d ** -0.5`` if None.
        dropout: Probability of dropping an attention weight.
        backend: ``'tiled'``, ``'reference'``, or None to choose.

    Returns:
        Tensor (B, H, W, heads, d).

    Raises:
        ValueError: H or W is no multiple of the window, or the backend asked
            for cannot run here.
    """
    if q.shape[1] % window_size or q.shape[2] % window_size:
        raise ValueError(
            f'The sides of a map must be multiples of the window; got '
            f'{tuple(q.shape[1:3])} for window_size={window_size}, pad it.'
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bias = window_bias(bias_table, window_size)
    args = q, k, v, bias, window_size, shift, scale, dropout
    run = choose('window_attention', BACKENDS, backend, *args)
    with autocast_off(q):
        return run(*args)
