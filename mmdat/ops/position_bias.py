# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Position biases of deformable attention, as functions of the query.

Each class holds the tensors of one bias. Its method ``rows`` returns the
scores that it adds for the queries ``start:stop`` (row-major over the query
map) and all keys. So a backend can process a few queries at a time and never
needs the whole (queries x keys) array.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import autocast_off
from .sampling import grid_sample_between
from .sizes import is_known, merge


class PositionBias(Protocol):
    """The interface of a bias for backends."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Scores (B or 1, heads, stop - start, Ns) to add before softmax."""
        ...


def query_points_yx(
    query_y: Tensor, query_x: Tensor, start: int, stop: int
) -> Tensor:
    """Positions (stop - start, 2) of some queries of the grid y by x."""
    (height,), (width,) = query_y.shape, query_x.shape
    if start == 0 and stop == height * width:  # no cut, for any size
        return _grid_yx(query_y, query_x)
    top, bottom = start // width, -(-stop // width)
    points_yx = _grid_yx(query_y[top:bottom], query_x)
    return points_yx[start - top * width : stop - top * width]


def _grid_yx(y: Tensor, x: Tensor) -> Tensor:
    """All pairs, (H W, 2)."""
    return torch.stack(torch.meshgrid(y, x, indexing='ij'), -1).flatten(0, 1)


def displacement_yx(
    query_y: Tensor, query_x: Tensor, points_yx: Tensor, start: int, stop: int
) -> Tensor:
    """Query minus key, (B, groups, stop - start, Ns, 2)."""
    queries_yx = query_points_yx(query_y, query_x, start, stop)
    keys_yx = points_yx.flatten(2, 3)  # B, g, Ns, 2
    return queries_yx[:, None] - keys_yx[:, :, None]


class TableBias(NamedTuple):
    """A table read bilinearly at half the displacement (DAT, eq. 8 ff.).

    Attributes:
        table: (heads, Ty, Tx), the heads of a group next to each other.
        query_y: Query coordinates along y (H,), float32 or wider.
        query_x: Query coordinates along x (W,).
        points_yx: Key positions (B, groups, Hk, Wk, 2).
    """

    table: Tensor
    query_y: Tensor
    query_x: Tensor
    points_yx: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """See [`PositionBias`][]."""
        batch, groups = self.points_yx.shape[:2]
        heads, table_h, table_w = self.table.shape
        queries_yx = query_points_yx(self.query_y, self.query_x, start, stop)
        queries_xy = queries_yx.flip(-1) / 2
        keys_xy = merge(self.points_yx).flatten(1, 2).flip(-1) / 2
        tables = self.table.to(keys_xy.dtype).reshape(
            1, groups, heads // groups, table_h, table_w
        )
        tables = merge(tables.expand(batch, -1, -1, -1, -1))
        bias = grid_sample_between(tables, queries_xy, keys_xy)
        return bias.reshape(batch, heads, *bias.shape[2:])


class DenseBias(NamedTuple):
    """One learnt number for each head, query and key.

    Attributes:
        scores: (heads, H * W, Ns).
    """

    scores: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """See [`PositionBias`][]."""
        return self.scores[None, :, start:stop]


class LogBias(NamedTuple):
    """A small MLP on the log-spaced displacement (after Swin V2).

    Attributes:
        mlp: Maps spaced displacements (..., 2) to the scores of the heads of
            a group (..., heads / groups); all groups share it.
        query_y: As in [`TableBias`][], and so the next two.
        query_x: Query coordinates along x (W,).
        points_yx: Key positions (B, groups, Hk, Wk, 2).
    """

    mlp: Callable[[Tensor], Tensor]
    query_y: Tensor
    query_x: Tensor
    points_yx: Tensor

    def rows(self, start: int, stop: int) -> Tensor:
        """See [`PositionBias`][]."""
        move_yx = 4 * displacement_yx(
            self.query_y, self.query_x, self.points_yx, start, stop
        )
        spaced_yx = move_yx.sign() * torch.log2(1 + move_yx.abs()) / 3
        with autocast_off(spaced_yx):
            scores = self.mlp(spaced_yx)
        return scores.permute(0, 1, 4, 2, 3).flatten(1, 2)  # B, heads, ...


def resize_dense_scores(
    scores: Tensor,
    from_sizes: tuple[int, int, int, int],
    to_sizes: tuple[int, int, int, int],
) -> Tensor:
    """Stretches a [`DenseBias`][] to other query and key grids.

    Args:
        scores: (heads, H W, Hk Wk).
        from_sizes: H, W, Hk, Wk of the given scores.
        to_sizes: H, W, Hk, Wk of the result. Interpolation is bilinear with
            aligned corners, first over the keys and then over the queries.

    Returns:
        Tensor (heads, H' W', Hk' Wk').
    """
    if is_known(*to_sizes) and from_sizes == to_sizes:
        return scores
    scores = scores.unflatten(2, from_sizes[2:])
    scores = F.interpolate(
        scores, to_sizes[2:], mode='bilinear', align_corners=True
    ).flatten(2)  # heads, H W, keys
    scores = scores.transpose(1, 2).unflatten(2, from_sizes[:2])
    scores = F.interpolate(
        scores, to_sizes[:2], mode='bilinear', align_corners=True
    )
    return scores.flatten(2).transpose(1, 2)
