# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention in windows from map to map, with the projections around it."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from .backends import window_pieces
from .dispatch import Backend, choose, reasons
from .norm import NO_NORM, Norm, around
from .window_attention import window_attention, window_bias
from .windows import WindowLayout, join_windows, split_windows


def between_layers(
    x: Tensor,
    project_qkv: Callable[[Tensor], Tensor],
    project_out: Callable[[Tensor], Tensor],
    bias_table: Tensor,
    layout: WindowLayout,
    dropout: float,
    backend: str | None,
) -> Tensor:
    """:func:`window_self_attention`, the projections given as functions."""
    # Cut before the projections: there are three times as many after.
    qkv = project_qkv(split_windows(x, layout))
    qkv = qkv.unflatten(-1, (3, bias_table.shape[1], -1))  # n, B, w w, ...
    out = window_attention(
        *qkv.unbind(3), bias_table, layout, dropout=dropout, backend=backend
    )
    return join_windows(project_out(out.flatten(-2)), layout)


def _in_pieces(*args) -> Tensor:
    *tensors, bias_table, layout, norm, residual, _ = args
    bias = window_bias(bias_table, layout.size)
    return window_pieces.window_self_attention(
        *tensors,
        bias,
        layout.size,
        layout.shift,
        *(norm or NO_NORM),
        residual,
    )


def _with(backend: str) -> Callable[..., Tensor]:
    """:func:`between_layers` with a backend of the attention between."""

    def run(x, qkv_weight, qkv_bias, out_weight, out_bias, *args):
        bias_table, layout, norm, residual, dropout = args
        branch = partial(
            between_layers,
            project_qkv=partial(F.linear, weight=qkv_weight, bias=qkv_bias),
            project_out=partial(F.linear, weight=out_weight, bias=out_bias),
            bias_table=bias_table,
            layout=layout,
            dropout=dropout,
            backend=backend,
        )
        return around(branch, x, norm, residual)

    return run


BACKENDS = (
    Backend('pieces', _in_pieces, window_pieces.declines),
    Backend('tiled', _with('tiled')),
    Backend('reference', _with('reference')),
)


def window_self_attention(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    bias_table: Tensor,
    layout: WindowLayout,
    *,
    norm: Norm | None = None,
    residual: bool = False,
    dropout: float = 0.0,
    backend: str | None = None,
    explain: bool = False,
) -> Tensor | dict[str, str | None]:
    """Attention within the windows of a map (Liu et al., ICCV 2021).

    The map is padded with zeros at the bottom right to whole windows; padded
    positions are ordinary keys, made of the biases.

    Args:
        x: Map (B, H, W, C).
        qkv_weight: Of the layer that makes queries, keys and values, (3 C, C).
        qkv_bias: (3 C,).
        out_weight: Of the layer that follows, (C, C).
        out_bias: (C,).
        bias_table: ((2w - 1)^2, heads), see
            :func:`mmdat.ops.window_attention.window_bias`.
        layout: How to cut the map.
        norm: What comes before.
        residual: Whether `x` is added at the end.
        dropout: Probability of dropping an attention weight.
        backend: ``'pieces'``, ``'tiled'``, ``'reference'``, or None to choose.
        explain: Return the reasons why each backend declines instead.

    Returns:
        Map (B, H, W, C).

    Raises:
        ValueError: The backend asked for cannot run here.
    """
    weights = qkv_weight, qkv_bias, out_weight, out_bias
    args = x, *weights, bias_table, layout, norm, residual, dropout
    if explain:
        return reasons('window_self_attention', BACKENDS, *args)
    return choose('window_self_attention', BACKENDS, backend, *args)(*args)
