# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Test cases: each op on odd shapes and on the models' shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from common import DEVICE, DRY
from torch import Tensor

from mmdat.ops import (
    deformable_attention,
    neighborhood_attention,
    sample_at_points,
)
from mmdat.ops.position_bias import TableBias

# q, k and v have the tested type; tables and coordinates are float32.
Op = Callable[..., Tensor]


@dataclass(frozen=True)
class Deformable:
    """Sizes of a deformable attention.

    Attributes:
        batch: Number of images.
        queries: Size (H, W) of the map of queries.
        keys: Size (Hk, Wk) of the map of keys.
        heads: Number of heads.
        groups: Number of groups of heads; heads of a group share points.
        dim: Channels of a head.
        table: Size (Ty, Tx) of the bias table.
        blocks: Number of blocks of these sizes in a model.
    """

    batch: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    heads: int
    groups: int
    dim: int
    table: tuple[int, int]
    blocks: int = 1

    names = ('out', 'q', 'k', 'v', 'table', 'points')

    @property
    def pairs(self) -> int:
        """Returns the number of scores of a forward pass."""
        (h, w), (hk, wk) = self.queries, self.keys
        return self.batch * self.heads * h * w * hk * wk

    def make(self) -> tuple[Op, list[Tensor]]:
        """Returns the op and float64 operands."""
        axes = [
            torch.linspace(-1, 1, n, dtype=torch.float64, device=DEVICE)
            for n in self.queries
        ]

        def op(q, k, v, table, points_yx, backend=None):
            query_y, query_x = (x.to(points_yx.dtype) for x in axes)
            bias = TableBias(table, query_y, query_x, points_yx)
            return deformable_attention(q, k, v, bias, backend=backend)

        keys = (self.batch, *self.keys, self.heads, self.dim)
        return op, [
            normal(self.batch, *self.queries, self.heads, self.dim),
            normal(*keys),
            normal(*keys),
            normal(self.heads, *self.table),
            normal(self.batch, self.groups, *self.keys, 2) * 0.6,
        ]


@dataclass(frozen=True)
class Neighborhood:
    """Sizes of a neighbourhood attention; see `Deformable` for the fields."""

    batch: int
    size: tuple[int, int]
    kernel: int
    heads: int
    dim: int
    blocks: int = 1

    names = ('out', 'q', 'k', 'v', 'table')

    @property
    def pairs(self) -> int:
        """Returns the number of scores of a forward pass."""
        height, width = self.size
        return self.batch * self.heads * height * width * self.kernel**2

    def make(self) -> tuple[Op, list[Tensor]]:
        """Returns the op and float64 operands."""

        def op(q, k, v, table, backend=None):
            return neighborhood_attention(
                q, k, v, table, self.kernel, backend=backend
            )

        qkv = normal(self.batch, *self.size, 3, self.heads, self.dim)
        side = 2 * self.kernel - 1
        return op, [*qkv.unbind(3), normal(self.heads, side, side)]


@dataclass(frozen=True)
class Sampling:
    """Sizes of sampling at points; see `Deformable` for the fields."""

    batch: int
    size: tuple[int, int]
    keys: tuple[int, int]
    channels: int
    groups: int
    blocks: int = 1

    names = ('out', 'map', 'points')

    def make(self) -> tuple[Op, list[Tensor]]:
        """Returns the op and float64 operands."""

        def op(x, points_yx, backend=None):
            return SAMPLERS[backend or 'chosen'](x, points_yx)

        return op, [
            normal(self.batch, *self.size, self.channels),
            normal(self.batch, self.groups, *self.keys, 2) * 0.6,
        ]


def plain_sampling(x: Tensor, points_yx: Tensor) -> Tensor:
    """Samples with PyTorch's ``grid_sample``, in float32 or float64."""
    batch, groups, hk, wk, _ = points_yx.shape
    maps = x.to(points_yx.dtype).permute(0, 3, 1, 2)
    maps = maps.reshape(batch * groups, -1, *maps.shape[2:])
    grid_xy = points_yx.flip(-1).flatten(0, 1)
    samples = F.grid_sample(maps, grid_xy, align_corners=True)
    return samples.reshape(batch, -1, hk, wk).permute(0, 2, 3, 1).to(x.dtype)


SAMPLERS = {'reference': plain_sampling, 'chosen': sample_at_points}
try:
    from mmdat.ops.triton import sampling as triton_sampling

    if not DRY or find_spec('triton'):
        SAMPLERS['triton'] = triton_sampling.sample_at_points
except ImportError:
    pass


def normal(*shape: int) -> Tensor:
    """Returns random float64 numbers; small tensors have reversed strides."""
    x = torch.randn(shape[::-1], device=DEVICE, dtype=torch.float64)
    x = x.permute(*reversed(range(len(shape))))
    return x.contiguous() if x.numel() > 10_000 else x


# Odd shapes: smaller or slightly larger than a block of the kernels; one row,
# one pixel; head widths that are no power of two; all sides different.
ODD = {
    'deformable odd': Deformable(2, (3, 7), (2, 5), 4, 2, 5, (5, 9)),
    'deformable row': Deformable(1, (1, 70), (1, 37), 1, 1, 20, (1, 4)),
    'deformable pixel': Deformable(1, (1, 1), (1, 1), 2, 2, 1, (1, 1)),
    'deformable d 33': Deformable(1, (5, 7), (4, 5), 3, 1, 33, (3, 4)),
    'neighborhood odd': Neighborhood(2, (5, 11), 3, 2, 3),
    'neighborhood least': Neighborhood(1, (7, 13), 7, 1, 5),
    'sampling odd': Sampling(2, (5, 9), (3, 4), 12, 2),
    'sampling row': Sampling(1, (1, 13), (1, 7), 5, 1),
}
# Shapes of the models, with fewer heads if float64 would fill the memory.
REAL = {
    'deformable T s3': Deformable(1, (50, 84), (50, 84), 4, 1, 32, (27, 27)),
    'deformable T s4': Deformable(2, (25, 43), (25, 43), 12, 3, 32, (13, 13)),
    'deformable T++ s1': Deformable(
        1, (100, 168), (25, 42), 2, 1, 32, (111, 111)
    ),
    'deformable d 64': Deformable(1, (31, 45), (16, 23), 2, 1, 64, (27, 27)),
    'deformable d 128': Deformable(1, (31, 45), (16, 23), 2, 1, 128, (27, 27)),
    'neighborhood T++ s3': Neighborhood(2, (50, 84), 7, 8, 32),
    'neighborhood T++ s1': Neighborhood(1, (200, 336), 7, 2, 32),
    'neighborhood d 64': Neighborhood(1, (31, 45), 7, 2, 64),
    'neighborhood d 128': Neighborhood(1, (20, 33), 13, 2, 128),
    'sampling T s3': Sampling(2, (50, 84), (50, 84), 384, 3),
    'sampling T++ s1': Sampling(2, (200, 336), (25, 42), 64, 1),
}
# Shapes of whole models on 2x3x800x1344, by stage.
TIMED = {
    'deformable T s3': Deformable(
        2, (50, 84), (50, 84), 12, 3, 32, (27, 27), 3
    ),
    'deformable T s4': Deformable(2, (25, 42), (25, 42), 24, 6, 32, (13, 13)),
    'deformable T++ s1': Deformable(
        2, (200, 336), (25, 42), 2, 1, 32, (111, 111)
    ),
    'deformable T++ s2': Deformable(
        2, (100, 168), (25, 42), 4, 2, 32, (55, 55), 2
    ),
    'deformable T++ s3': Deformable(
        2, (50, 84), (25, 42), 8, 4, 32, (27, 27), 9
    ),
    'deformable T++ s4': Deformable(
        2, (25, 42), (25, 42), 16, 8, 32, (13, 13), 2
    ),
    'neighborhood T++ s1': Neighborhood(2, (200, 336), 7, 2, 32),
    'neighborhood T++ s2': Neighborhood(2, (100, 168), 7, 4, 32, 2),
    'neighborhood T++ s3': Neighborhood(2, (50, 84), 7, 8, 32, 9),
    'sampling T s3': Sampling(2, (50, 84), (50, 84), 384, 3, 3),
    'sampling T++ s1': Sampling(2, (200, 336), (25, 42), 64, 1),
}
if DRY:  # the interpreter needs seconds for a few programs
    REAL = {}
    ODD = {
        'deformable odd': Deformable(2, (3, 7), (2, 5), 2, 2, 5, (5, 9)),
        'neighborhood odd': Neighborhood(1, (3, 5), 3, 1, 3),
        'sampling odd': ODD['sampling odd'],
    }
    TIMED = {
        'deformable': Deformable(1, (3, 4), (3, 4), 1, 1, 8, (5, 5)),
        'neighborhood': Neighborhood(1, (5, 5), 3, 1, 8),
        'sampling': Sampling(1, (5, 9), (3, 4), 8, 2),
    }
