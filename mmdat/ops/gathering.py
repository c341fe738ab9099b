# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Cuts a map into windows, in an exported graph that is right at any size.

In an exported graph sizes are symbols, and a reshape needs to know whether one
divides another. So these functions gather pixels by indices that the graph
computes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .sizes import ceil_div


class Cut(NamedTuple):
    """How a map is cut into n windows of w x w.

    Attributes:
        row: Row of each window in the grid of windows, (n, 1).
        column: Column of each window, (n, 1).
        y: Row of each position within its window, (w w,).
        x: Column of each position, (w w,).
        rows: Number of rows of windows.
        columns: Number of columns.
    """

    row: Tensor
    column: Tensor
    y: Tensor
    x: Tensor
    rows: int
    columns: int


def cut_windows(
    height: int, width: int, size: int, device: torch.device
) -> Cut:
    """Numbers the windows of a map and the positions in them."""
    rows, columns = ceil_div(height, size), ceil_div(width, size)
    number = rows * columns
    if isinstance(number, torch.SymInt):
        number = number + 1  # a graph for one window fails for more
    window = torch.arange(number, device=device)[:, None]
    place = torch.arange(size * size, device=device)
    row = window // columns
    return Cut(
        row,
        window - row * columns,
        place // size,
        place % size,
        rows,
        columns,
    )


def _around(place: Tensor, length: int) -> Tensor:
    """Wraps positions up to twice the length around to the start."""
    return place - length * (place >= length)


def split_windows(
    x: Tensor, height: int, width: int, size: int, shift: int
) -> Tensor:
    """See ``mmdat.ops.windows.split_windows``."""
    cut = cut_windows(height, width, size, x.device)
    row = _around(cut.row * size + cut.y + shift, cut.rows * size)
    column = _around(cut.column * size + cut.x + shift, cut.columns * size)
    inside = (row < height) & (column < width)  # n, w w
    row, column = row.clamp(max=height - 1), column.clamp(max=width - 1)
    windows = x[:, row, column]
    windows = windows.masked_fill(~inside[..., None], 0)
    return windows.transpose(0, 1)


def join_windows(
    windows: Tensor, height: int, width: int, size: int, shift: int
) -> Tensor:
    """See ``mmdat.ops.windows.join_windows``."""
    rows, columns = ceil_div(height, size), ceil_div(width, size)
    device = windows.device
    y = torch.arange(height, device=device)[:, None] + (rows * size - shift)
    x = torch.arange(width, device=device) + (columns * size - shift)
    y, x = _around(y, rows * size), _around(x, columns * size)
    window = y // size * columns + x // size
    place = y % size * size + x % size
    return windows.transpose(0, 1)[:, window, place]
