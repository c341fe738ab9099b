# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""D: deformable attention, the idea of DAT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops import deformable_attention, sample_at_points
from ...ops.coordinates import (
    deformed_points_yx,
    query_axis,
    reference_points_yx,
)
from ...ops.position_bias import (
    DenseBias,
    LogBias,
    PositionBias,
    TableBias,
    resize_dense_scores,
)
from ...ops.precision import at_least_float32, autocast_off, product_type
from ...ops.sizes import ceil_div, is_known, merge, unflatten
from ..fused import project
from ..layers import as_parameters_of, depthwise, named, pad_to_multiple
from ..stock import calls_by_the_seam


@calls_by_the_seam('proj_q', 'proj_k', 'proj_v', 'proj_out')
class DeformableAttention(nn.Module):
    """Multi-head attention to keys sampled at shifted grid points.

    All queries of a head group share the same few keys and values. A small
    convolutional network predicts their sampling points from the queries
    (DAT, CVPR 2022, sec. 3.2; DAT++, arXiv 2309.01430, sec. 3.2).

    Args:
        dim: Channels.
        num_heads: Heads.
        offset_groups: Groups of heads that share their points.
        map_size: (H, W) of the map at the training resolution; it sets the
            size of the position-bias table.
        convention: Coordinates of ``'dat'`` or ``'dat_pp'``, see
            ``mmdat.ops.coordinates``.
        offset_kernel: Side of the convolution that predicts the offsets.
        stride: Queries per key along each axis.
        offset_range: Largest offset in cells of the key grid, -1 for none.
        use_offsets: False computes the keys by average pooling instead of
            sampling.
        position_bias: One of ``'table'`` (read at the continuous
            displacement), ``'fixed'`` (one number for each query and key),
            ``'depthwise_conv'`` (a 3x3 convolution of the queries added to
            the output), ``'log_continuous'`` (an MLP on the log-spaced
            displacement) and ``'none'``.
        attn_drop_rate: Dropout on the attention weights.
        drop_rate: Dropout on the output.
        backend: See ``mmdat.ops.deformable_attention``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        offset_groups: int,
        map_size: tuple[int, int],
        convention: str,
        offset_kernel: int,
        stride: int = 1,
        offset_range: float = -1,
        use_offsets: bool = True,
        position_bias: str = 'table',
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.offset_groups = offset_groups
        self.map_size = map_size
        self.convention = convention
        self.stride = stride
        self.offset_range = offset_range
        self.position_bias = position_bias
        self.attn_drop_rate = attn_drop_rate
        self.backend = backend

        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj_out = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop_rate)

        group_dim = dim // offset_groups
        self.conv_offset = (
            named(
                dwconv=depthwise(group_dim, offset_kernel, stride),
                norm=nn.LayerNorm(group_dim),
                act=nn.GELU(),
                proj=nn.Linear(group_dim, 2, bias=False),
            )
            if use_offsets
            else None
        )
        self.key_size = tuple(-(-n // stride) for n in map_size)
        self.rpe_table = self._make_rpe_table(dim)

    def _make_rpe_table(self, dim: int) -> nn.Module | nn.Parameter | None:
        """Creates the parameters of the position bias."""
        (height, width), (hk, wk) = self.map_size, self.key_size
        heads = self.num_heads
        if self.position_bias == 'none':
            return None
        if self.position_bias == 'depthwise_conv':
            return depthwise(dim, 3)
        if self.position_bias == 'log_continuous':
            return nn.Sequential(
                nn.Linear(2, 32),
                nn.ReLU(),
                nn.Linear(32, heads // self.offset_groups, bias=False),
            )
        shape = (
            (heads, height * width, hk * wk)
            if self.position_bias == 'fixed'
            else (heads, 2 * height - 1, 2 * width - 1)
        )
        return nn.Parameter(
            nn.init.trunc_normal_(torch.empty(shape), std=0.01)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, H, W, C)."""
        x = x.to(product_type(x))
        q = project(self.proj_q, x)
        points_yx = self.points_yx(q)
        if self.conv_offset is None:
            sampled = self._pool(x)
        else:
            sampled = sample_at_points(x, points_yx)  # B, Hk, Wk, C
        k = project(self.proj_k, sampled)
        v = project(self.proj_v, sampled)

        q_heads, k, v = (
            unflatten(t, -1, (self.num_heads, -1)) for t in (q, k, v)
        )
        out = deformable_attention(
            q_heads,
            k,
            v,
            self._bias(x.shape[1:3], points_yx),
            dropout=self.attn_drop_rate if self.training else 0.0,
            backend=self.backend,
        ).flatten(-2)
        if self.position_bias == 'depthwise_conv':
            out = out + self.rpe_table(q)
        return self.proj_drop(project(self.proj_out, out))

    def points_yx(self, q: Tensor) -> Tensor:
        """Computes the sampling points of the keys.

        Args:
            q: Projected queries (B, H, W, C).

        Returns:
            Positions (B, groups, Hk, Wk, 2) in normalised coordinates, in
            float32 or float64 for every type of `q`.
        """
        batch, height, width, _ = q.shape
        if self.conv_offset is None:
            hk, wk = (ceil_div(n, self.stride) for n in (height, width))
            like = at_least_float32(q[:0])
            points_yx = reference_points_yx(hk, wk, self.convention, like)
            return points_yx.expand(batch, self.offset_groups, -1, -1, -1)
        q = unflatten(q, -1, (self.offset_groups, -1))
        # Offsets in float32 also under autocast, see ops.precision.
        q = as_parameters_of(self.conv_offset, q.permute(0, 3, 1, 2, 4))
        q = merge(q)  # B g, H, W, C / g
        with autocast_off(q):
            offset_yx = self.conv_offset(q)
        offset_yx = at_least_float32(offset_yx)
        offset_yx = unflatten(offset_yx, 0, (batch, self.offset_groups))
        return deformed_points_yx(
            offset_yx, self.convention, self.offset_range
        )

    def _pool(self, x: Tensor) -> Tensor:
        """Averages stride x stride patches, for keys without offsets."""
        if is_known(*x.shape[1:3]):
            x = x.permute(0, 3, 1, 2)
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
            return x.permute(0, 2, 3, 1)
        # Pad to whole patches, so that the graph is right at any size.
        inside = torch.ones_like(x[:1, :, :, :1])
        x, inside = (
            F.avg_pool2d(
                pad_to_multiple(t, self.stride).permute(0, 3, 1, 2),
                self.stride,
            ).permute(0, 2, 3, 1)
            for t in (x, inside)
        )
        return x / inside

    def _bias(
        self, map_size: tuple[int, int], points_yx: Tensor
    ) -> PositionBias | None:
        """Returns the bias on the scores, for a map of this size."""
        if self.position_bias in ('none', 'depthwise_conv'):
            return None
        if self.position_bias == 'fixed':
            return DenseBias(
                resize_dense_scores(
                    self.rpe_table,
                    (*self.map_size, *self.key_size),
                    (*map_size, *points_yx.shape[2:4]),
                )
            )
        query_y, query_x = (
            query_axis(n, self.convention, points_yx) for n in map_size
        )
        if self.position_bias == 'table':
            return TableBias(self.rpe_table, query_y, query_x, points_yx)
        return LogBias(self._log_continuous, query_y, query_x, points_yx)

    def _log_continuous(self, spaced_yx: Tensor) -> Tensor:
        """Applies the MLP of the log-continuous bias to (..., 2)."""
        scores = self.rpe_table(as_parameters_of(self.rpe_table, spaced_yx))
        return at_least_float32(scores)

    def extra_repr(self) -> str:
        """Returns the settings that the submodules do not show."""
        return (
            f'num_heads={self.num_heads}, offset_groups={self.offset_groups}, '
            f'map_size={self.map_size}, stride={self.stride}, '
            f'offset_range={self.offset_range}, '
            f'position_bias={self.position_bias!r}'
        )
