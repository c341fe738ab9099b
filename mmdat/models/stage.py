# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Blocks, and a stage as a row of them.

Between the branches of a block pixels lie along one axis, (B, H * W, C):
compilers take sums of four axes for (B, C, H, W) and turn them to lay channels
last.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.utils.checkpoint as cp
from torch import Tensor, nn

from .arch import Architecture, StageSettings
from .attention import KINDS
from .attention.window import WindowAttention
from .layers import (
    DropPath,
    LayerScale,
    depthwise,
    does_nothing,
    is_hooked,
    plain_norm,
)
from .mlp import MLP

# Branches that run the norm before and the sum after as parts of themselves.
TAKE_NORMS = MLP, WindowAttention


def _layer_scale(dim: int, init_value: float) -> nn.Module:
    return LayerScale(dim, init_value) if init_value > 0 else nn.Identity()


def _on_map(
    branch: Callable[[Tensor], Tensor], x: Tensor, map_size: tuple[int, int]
) -> Tensor:
    """Applies what wants a map to pixels (B, H * W, C)."""
    return branch(x.unflatten(1, map_size)).flatten(1, 2)


class Block(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        map_size = x.shape[1:3]
        x = x.flatten(1, 2)
        for norm, branch, scale in (
            (self.norm1, self.attn, self.layer_scale1),
            (self.norm2, self.mlp, self.layer_scale2),
        ):
            x = self._add(x, norm, branch, scale, map_size)
        return x.unflatten(1, map_size)

    def _add(
        self,
        x: Tensor,
        norm: nn.Module,
        branch: nn.Module,
        scale: nn.Module,
        map_size: tuple[int, int],
    ) -> Tensor:
        """Adds what a branch makes of pixels (B, H * W, C) to them."""
        plain = plain_norm(norm)
        if (
            plain is None
            or type(branch) not in TAKE_NORMS
            or is_hooked(branch)
        ):
            out = _on_map(branch, norm(x), map_size)
        else:
            residual = does_nothing(scale) and does_nothing(self.drop_path)
            out = _on_map(
                partial(branch, norm=plain, residual=residual), x, map_size
            )
            if residual:
                return out
        return x + self.drop_path(scale(out))


class ConvBlock(nn.Module):
    """X: depthwise convolution, norm and MLP in one residual branch.

    Args:
        arch: See :class:`Block`, and so all the others.
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

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        branch = self.mlp(self.norm(self.conv(x)))
        return x + self.drop_path(self.layer_scale(branch))


class Stage(nn.Module):
    """The blocks of one resolution.

    Args:
        arch: The architecture.
        stage: Settings of this stage.
        drop_path_rates: Stochastic depth of each block.
        drop_rate: See :class:`Block`.
        attn_drop_rate: See :class:`Block`.
        with_cp: Recompute each block in the backward pass instead of keeping
            its activations.
        backend: See :class:`Block`.
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
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = cp.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x
