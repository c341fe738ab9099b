# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The kinds of attention a block may have, one file each.

Each maps (B, H, W, C) to (B, H, W, C), projects its input, calls one function
of :mod:`mmdat.ops` and projects back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from ..layers import depthwise
from .deformable import DeformableAttention
from .neighborhood import NeighborhoodAttention
from .pyramid import PyramidAttention
from .query import QueryAttention
from .slide import SlideAttention
from .window import WindowAttention

if TYPE_CHECKING:
    from ..arch import StageSettings

__all__ = [
    'KINDS',
    'DeformableAttention',
    'NeighborhoodAttention',
    'PyramidAttention',
    'QueryAttention',
    'SlideAttention',
    'WindowAttention',
]


def _window(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return WindowAttention(
        s.dim, s.num_heads, s.window_size, backend=backend, **drop
    )


def _shifted(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return WindowAttention(
        s.dim,
        s.num_heads,
        s.window_size,
        shift=-(-s.window_size // 2),
        backend=backend,
        **drop,
    )


def _neighborhood(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return NeighborhoodAttention(
        s.dim, s.num_heads, s.neighborhood_size, backend=backend, **drop
    )


def _deformable(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return DeformableAttention(
        s.dim,
        s.num_heads,
        s.offset_groups,
        s.map_size,
        s.convention,
        s.offset_kernel,
        s.offset_stride,
        s.offset_range,
        s.use_offsets,
        s.position_bias,
        backend=backend,
        **drop,
    )


def _pyramid(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return PyramidAttention(s.dim, s.num_heads, s.sr_ratio, **drop)


def _slide(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return SlideAttention(s.dim, s.num_heads, **drop)


def _query(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    # As in the authors' ablations: twice the heads of the stage.
    return QueryAttention(s.dim, 2 * s.num_heads, drop_rate=drop['drop_rate'])


def _convolution(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return depthwise(s.dim, s.window_size)


#: How to build the attention of a block from its letter. X is no attention
#: but a depthwise convolution, and its block has one residual branch.
KINDS: dict[str, Callable[..., nn.Module]] = {
    'L': _window,
    'S': _shifted,
    'N': _neighborhood,
    'D': _deformable,
    'P': _pyramid,
    'X': _convolution,
    'E': _slide,
    'Q': _query,
}
