# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Blocks, a stage as a row of them, and the attention of each letter."""

from collections.abc import Callable, Iterable

import torch
import torch.utils.checkpoint as cp
from torch import Tensor, nn

from ..ops.deformable_attention import BACKENDS as DEFORMABLE
from ..ops.neighborhood_attention import BACKENDS as NEIGHBORHOOD
from ..ops.window_attention import BACKENDS as WINDOW
from . import fused
from .arch import Architecture, StageSettings
from .attention import (
    DeformableAttention,
    FullAttention,
    NeighborhoodAttention,
    PyramidAttention,
    QueryAttention,
    SlideAttention,
    WindowAttention,
)
from .layers import DropPath, LayerScale, depthwise
from .mlp import MLP
from .scripted.forms import Scriptable
from .symbolic import is_symbolic, one_node


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


def _full(s: StageSettings, backend: str | None, **drop) -> nn.Module:
    return FullAttention(s.dim, s.num_heads, **drop)


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
    'F': _full,
    'Q': _query,
}


def backend_names(letters: Iterable[str]) -> set[str]:
    """Names of the backends that attentions of these letters have."""
    known = {'L': WINDOW, 'S': WINDOW, 'N': NEIGHBORHOOD, 'D': DEFORMABLE}
    return {b.name for letter in letters for b in known.get(letter, ())}


def _layer_scale(dim: int, init_value: float) -> nn.Module:
    return LayerScale(dim, init_value) if init_value > 0 else nn.Identity()


class Block(Scriptable, nn.Module):
    """Attention and MLP, each normalised before and added to its input.

    Args:
        arch: The architecture.
        stage: The stage the block is in.
        kind: Letter of its attention.
        drop_rate: Dropout on projections.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of both branches.
        backend: Backend of the attention, None to choose.
    """

    def __init__(
        self,
        arch: Architecture,
        stage: StageSettings,
        kind: str,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        backend: str | None,
    ) -> None:
        super().__init__()
        dim, init_value = stage.dim, stage.layer_scale_init_value
        self.local_perception = (
            depthwise(dim, 3) if arch.local_perception else None
        )
        self.norm1 = nn.LayerNorm(dim)
        self.attn = KINDS[kind](
            stage, backend, attn_drop_rate=attn_drop_rate, drop_rate=drop_rate
        )
        self.layer_scale1 = _layer_scale(dim, init_value)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(
            dim, int(dim * arch.mlp_ratio), arch.conv_mlp, drop_rate
        )
        self.layer_scale2 = _layer_scale(dim, init_value)
        self.drop_path = DropPath(drop_path_rate)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        with fused.narrow_weights_of(self, x):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        if (out := fused.block(self, x)) is not None:
            return out
        out = self.attn(fused.normalize(self.norm1, self.attn, x))
        x = fused.add(x, self.layer_scale1(out), self.drop_path)
        out = self.mlp(fused.normalize(self.norm2, self.mlp, x))
        return fused.add(x, self.layer_scale2(out), self.drop_path)


class ConvBlock(Scriptable, nn.Module):
    """X: depthwise convolution, norm and MLP in one residual branch.

    Args:
        arch: See ``Block``, and so all the others.
        stage: The stage.
        kind: ``'X'``.
        drop_rate: Dropout in the MLP.
        attn_drop_rate: Not used.
        drop_path_rate: Stochastic depth of the branch.
        backend: Not used.
    """

    def __init__(
        self,
        arch: Architecture,
        stage: StageSettings,
        kind: str,
        drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        backend: str | None,
    ) -> None:
        super().__init__()
        dim = stage.dim
        self.local_perception = (
            depthwise(dim, 3) if arch.local_perception else None
        )
        self.conv = KINDS[kind](stage, backend)
        self.norm = nn.LayerNorm(dim)
        self.mlp = MLP(
            dim, int(dim * arch.mlp_ratio), arch.conv_mlp, drop_rate
        )
        self.layer_scale = _layer_scale(dim, stage.layer_scale_init_value)
        self.drop_path = DropPath(drop_path_rate)

    @one_node
    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        with fused.narrow_weights_of(self, x):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        out = fused.normalize(self.norm, self.mlp, self.conv(x))
        out = self.layer_scale(self.mlp(out))
        return fused.add(x, out, self.drop_path)


class Stage(nn.Module):
    """The blocks of one resolution.

    Args:
        arch: The architecture.
        stage: Settings of this stage.
        drop_path_rates: Stochastic depth of each block.
        drop_rate: See ``Block``.
        attn_drop_rate: See ``Block``.
        with_cp: Recompute each block in the backward pass instead of keeping
            its activations.
        backend: See ``Block``.
    """

    def __init__(
        self,
        arch: Architecture,
        stage: StageSettings,
        drop_path_rates: list[float],
        drop_rate: float,
        attn_drop_rate: float,
        with_cp: bool,
        backend: str | None,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.blocks = nn.ModuleList(
            (ConvBlock if kind == 'X' else Block)(
                arch, stage, kind, drop_rate, attn_drop_rate, rate, backend
            )
            for kind, rate in zip(
                stage.attentions, drop_path_rates, strict=True
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        # A graph is made of what blocks do, not of how they save memory.
        again = self.with_cp and not is_symbolic(x)
        for block in self.blocks:
            if again and torch.is_grad_enabled():
                x = cp.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x
