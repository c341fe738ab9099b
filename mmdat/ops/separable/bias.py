# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A position-bias table, read for blocks of keys by matrix products.

Queries lie on a grid, so the bias of key n on the query at row y and column x
is ``Wy T Wx``: two of the table's rows are mixed for each y, two of its
columns for each x. Mixing rows is a weighted sum of two slices of the table,
starting where the first column falls; mixing columns is a product with a
matrix of hat functions that all rows and all heads of a group share. Nothing
is gathered for single pairs of query and key, and the backward pass consists
of the same products, without atomic additions.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..position_bias import TableBias


class TableSlices(NamedTuple):
    """All slices of some length of the rows of a table.

    A slice may begin up to `length` columns before the table and the rows
    reach two beyond it on either side; there the table is zero.

    Attributes:
        values: (groups * (Ty + 4) * starts, heads / groups * length).
        rows: Ty + 4.
        starts: Tx + length + 1.
        length: Columns of a slice.
    """

    values: Tensor
    rows: int
    starts: int
    length: int


def slice_length(query_x: Tensor, tile: int, table_width: int) -> int:
    """Columns of the table that the queries of any tile may need."""
    starts = query_x[::tile]
    stops = query_x[
        torch.arange(tile - 1, query_x.numel() + tile - 1, tile).clamp(
            max=query_x.numel() - 1
        )
    ]
    span = float((stops - starts).max()) * (table_width - 1) / 4
    return math.ceil(span) + 2


def cut_slices(table: Tensor, groups: int, length: int) -> TableSlices:
    """Cuts a table (heads, Ty, Tx) into ``TableSlices``."""
    heads, height, _ = table.shape
    slices = F.pad(table, (length, length, 2, 2)).unfold(2, length, 1)
    starts = slices.shape[2]
    slices = slices.unflatten(0, (groups, -1))  # g, heads / g, rows, starts, l
    slices = slices.permute(0, 2, 3, 1, 4)
    values = slices.reshape(-1, heads // groups * length)
    return TableSlices(values, height + 4, starts, length)


def steps_between_rows(slices: TableSlices) -> Tensor:
    """What each slice lacks of the one a row below, as the slices."""
    values = slices.values.unflatten(0, (-1, slices.rows, slices.starts))
    steps = torch.zeros_like(values)
    torch.sub(values[:, 1:], values[:, :-1], out=steps[:, :-1])
    return steps.flatten(0, 2)


def join_slices(grads: Tensor, slices: TableSlices, table: Tensor) -> Tensor:
    """The gradient of a table from those of its slices.

    Args:
        grads: For each slice the gradients of all mixes of which it is the
            upper one, and those times the weight of the lower one
            (slices, 2, heads / groups * length).
        slices: The slices.
        table: The table (heads, Ty, Tx).

    Returns:
        Tensor (heads, Ty, Tx).
    """
    heads, height, width = table.shape
    length = slices.length
    mixed, lower = grads.view(
        -1, slices.rows, slices.starts, 2, grads.shape[-1] // length, length
    ).unbind(3)
    grads = mixed - lower
    grads[:, 1:] += lower[:, :-1]
    grads = grads.permute(0, 3, 1, 2, 4).reshape(
        heads, slices.rows, slices.starts, length
    )
    padded = grads.new_zeros(heads, slices.rows, width + 2 * length)
    for i in range(length):
        padded[:, :, i : i + slices.starts] += grads[..., i]
    inner = padded[:, 2 : height + 2, length : length + width]
    return inner.contiguous()


def _cells(query: Tensor, points: Tensor, side: int) -> Tensor:
    """Where along a table's axis each pair reads it, (..., queries)."""
    return ((query - points[..., None]) / 2 + 1) * ((side - 1) / 2)


class KeyBlock:
    """The bias of a block of keys on a tile of queries.

    `P` counts pairs of image and head group, whose tables may differ.

    Args:
        bias: The whole bias.
        slices: Its table in slices.
        points_yx: Positions (n, P, 2) of the keys.
        groups: Head group of each pair (P,).
        rows: Rows of the query map that make up the tile.
        columns: Its columns.
    """

    def __init__(
        self,
        bias: TableBias,
        slices: TableSlices,
        points_yx: Tensor,
        groups: Tensor,
        rows: slice,
        columns: slice,
    ) -> None:
        height, width = bias.table.shape[1:]
        length = slices.length
        self.slices = slices
        self.table_size = height, width
        self.keys, self.pairs = points_yx.shape[:2]
        self.heads = slices.values.shape[1] // length
        # A clamped position reads zeros only, of two rows: what their mix
        # weighs nothing would still give it a gradient. NaN is kept in the
        # weights.
        y = _cells(bias.query_y[rows], points_yx[..., 0], height)
        top = y.floor().clamp_(-2, height)  # n, P, rows
        weight = (y - top).clamp_(0, 1)
        self.weights = torch.stack([1 - weight, weight], -1)
        x = _cells(bias.query_x[columns], points_yx[..., 1], width)
        left = x[..., 0].floor().clamp_(-length, width)
        top = top.int().clamp_(-2, height) + 2
        top += groups[:, None] * slices.rows
        start = left.int().clamp_(-length, width) + length
        # The upper of the two slices to mix, (n, P, rows).
        self.upper = top * slices.starts + start[..., None]
        # Where in its slice each query of the tile reads, (n, P, columns).
        self.place = x - left[..., None]
        hats = self._distance().abs_().neg_().add_(1).clamp_(min=0)
        self.hats = hats.flatten(0, 1)

    def _distance(self) -> Tensor:
        """Of queries from columns of the slice, (n, P, length, columns)."""
        length, place = self.slices.length, self.place
        steps = torch.arange(length, dtype=place.dtype, device=place.device)
        return place[..., None, :] - steps[:, None]

    def mixed_rows(self, rows: slice) -> Tensor:
        """The table's rows, mixed for some rows of queries.

        Returns:
            Tensor (n * P, heads / groups * R, length).
        """
        upper = self.upper[:, :, rows]
        mixed = F.embedding_bag(
            torch.stack([upper, upper + self.slices.starts], -1).view(-1, 2),
            self.slices.values,
            per_sample_weights=self.weights[:, :, rows].reshape(-1, 2),
            mode='sum',
        )
        length = self.slices.length
        mixed = mixed.view(self.keys * self.pairs, -1, self.heads, length)
        return mixed.transpose(1, 2).flatten(1, 2)

    def start_gradients(self) -> None:
        """Prepares for ``add_gradients``."""
        self.hats_grad = torch.zeros_like(self.hats)
        self.weight_grad = self.hats.new_zeros(self.keys, self.pairs)

    def add_gradients(
        self,
        rows: slice,
        mixed: Tensor,
        grad: Tensor,
        steps: Tensor,
        slices_grad: Tensor,
    ) -> None:
        """Takes in the gradient of the bias on some rows of queries.

        Args:
            rows: The rows.
            mixed: What ``mixed_rows`` gave for them.
            grad: Gradient of the bias (n * P, heads / groups * R, columns).
            steps: See ``steps_between_rows``.
            slices_grad: As ``join_slices`` wants it, added to.
        """
        torch.baddbmm(
            self.hats_grad, mixed.transpose(1, 2), grad, out=self.hats_grad
        )
        grad = torch.bmm(grad, self.hats.transpose(1, 2))
        grad = grad.view(*self.upper.shape[:2], self.heads, -1, mixed.shape[2])
        grad = grad.transpose(2, 3)  # n, P, R, heads, length
        weight = self.weights[:, :, rows, 1, None, None]
        both = torch.stack([grad, grad * weight], 3).flatten(4)
        upper = self.upper[:, :, rows].flatten()
        slices_grad.index_add_(0, upper, both.flatten(0, 2))
        steps = steps.index_select(0, upper).view_as(both[:, :, :, 0])
        self.weight_grad += steps.mul_(both[:, :, :, 0]).sum((2, 3))

    def points_grad(self) -> Tensor:
        """Gradient of the positions, (n, P, 2)."""
        height, width = self.table_size
        distance = self._distance()
        below = (distance >= -1) & (distance < 0)
        above = (distance >= 0) & (distance < 1)
        slope = below.to(self.hats.dtype) - above.to(self.hats.dtype)
        x = (self.hats_grad.view_as(slope) * slope).sum((-1, -2))
        y = self.weight_grad
        return torch.stack([y * (1 - height) / 4, x * (1 - width) / 4], -1)
