# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Cutting a map into windows, plain or shifted, and putting it together."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import gathering
from .custom_op import is_compiling, is_exporting
from .sizes import ceil_div, crop, is_needed, pad


class WindowPart(NamedTuple):
    """Windows with the same mask, a rectangle of the grid of windows.

    Numbers, since compilers take a slice that is handed on for one size.

    Attributes:
        start: The first of them in the order of the windows.
        row: Their first row in the grid.
        rows: How many rows.
        column: Their first column.
        columns: How many columns.
        seam_y: Whether they hold rows from both ends of the map.
        seam_x: Whether they hold columns from both ends.
    """

    start: int
    row: int
    rows: int
    column: int
    columns: int
    seam_y: bool
    seam_x: bool

    @property
    def windows(self) -> slice:
        """Their place in the order of the windows."""
        return slice(self.start, self.start + self.rows * self.columns)


class WindowLayout(NamedTuple):
    """How a map is cut.

    Attributes:
        height: H.
        width: W.
        size: Side of a window w.
        shift: How far the map is rolled to the top left before it is cut.
    """

    height: int
    width: int
    size: int
    shift: int

    # No property: torch.compile of PyTorch 2.9 cannot trace one here.
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return ceil_div(self.height, self.size), ceil_div(
            self.width, self.size
        )

    def parts(self) -> Iterator[WindowPart]:
        """All windows; in the order of windows those of a part are together.

        Only the last row and column of windows of a rolled map hold pixels
        from two ends of it.
        """
        start = 0
        for row, rows, seam_y in self._spans(self.grid()[0]):
            for column, columns, seam_x in self._spans(self.grid()[1]):
                yield WindowPart(
                    start, row, rows, column, columns, seam_y, seam_x
                )
                start += rows * columns

    def _spans(self, n: int) -> list[tuple[int, int, bool]]:
        """First, number and seam of the rows, or columns, that look alike."""
        if not self.shift:
            return [(0, n, False)]
        whole = [(0, n - 1, False)] if n > 1 else []
        return [*whole, (n - 1, 1, True)]


def split_windows(
    x: Tensor, layout: WindowLayout, dtype: torch.dtype | None = None
) -> Tensor:
    """Cuts a map into windows.

    The map is padded with zeros at the bottom right to a multiple of the
    window, and rolled.

    Args:
        x: Map (B, H, W, C).
        layout: How to cut it.
        dtype: Type of the windows; None keeps that of `x`.

    Returns:
        Windows (n, B, w * w, C).
    """
    size, shift = layout.size, layout.shift
    dtype = x.dtype if dtype is None else dtype
    if is_exporting():
        return gathering.split_windows(x, *layout).to(dtype)
    rows, columns = layout.grid()
    below, right = rows * size - layout.height, columns * size - layout.width
    padded = is_needed(below) or is_needed(right)
    if padded or shift:
        x = x.to(dtype)
    if padded:
        x = pad(x, below, right)
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    grid = x.unflatten(1, (rows, size)).unflatten(3, (columns, size))
    grid = grid.permute(1, 3, 0, 2, 4, 5)  # rows, columns, B, w, w, C
    if not shift:
        grid = grid.to(dtype, memory_format=torch.contiguous_format)
        return grid.flatten(3, 4).flatten(0, 1)
    parts = []
    for part in layout.parts():
        cut = grid[part.row : part.row + part.rows]
        cut = cut[:, part.column : part.column + part.columns]
        if is_compiling():  # who copy once all the same, and ask nothing
            cut = cut.clone(memory_format=torch.contiguous_format)
        parts.append(cut.flatten(3, 4).flatten(0, 1))
    return torch.cat(parts)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def join_windows(windows: Tensor, layout: WindowLayout) -> Tensor:
    """The reverse of [`split_windows`][], without the padding.

    Args:
        windows: (n, B, w * w, C).
        layout: How they were cut.

    Returns:
        Map (B, H, W, C).
    """
    size, shift = layout.size, layout.shift
    if is_exporting():
        return gathering.join_windows(windows, *layout)
    windows = windows.unflatten(2, (size, size))
    bands: list[list[Tensor]] = [[]]
    for part in layout.parts():
        band = windows[part.windows].unflatten(0, (part.rows, part.columns))
        band = band.permute(2, 0, 3, 1, 4, 5)  # B, rows, w, columns, w, C
        bands[-1].append(band)
        if part.seam_x:  # the last columns of these rows
            bands.append([])
    bands = [band for band in bands if band]
    x = _cat([_cat(band, 3) for band in bands], 1)
    x = x.flatten(3, 4).flatten(1, 2)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return crop(x, layout.height, layout.width)
