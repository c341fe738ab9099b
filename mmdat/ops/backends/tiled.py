# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Local attention as dense attention between small tiles.

Windows and neighbourhoods repeat over the map; only at its borders do they
look different. Tiles that look alike are batched into one call of fused
attention with one small bias, so nothing of the size of the map times the
size of the window is ever built, but the keys of overlapping neighbourhoods.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..windows import WindowLayout


class Run(NamedTuple):
    """Consecutive tiles along one axis that see their keys alike.

    Attributes:
        query: First query of the first tile.
        key: First key of the first tile; both move on by `tile` per tile.
        tiles: Number of tiles.
        first_key: For each query of a tile, where its own neighbourhood
            begins among the keys of the tile.
    """

    query: int
    key: int
    tiles: int
    first_key: tuple[int, ...]


def neighborhood_runs(length: int, tile: int, kernel_size: int) -> list[Run]:
    """Cuts one axis into runs of tiles for neighbourhood attention."""
    span = min(tile + kernel_size - 1, length)
    runs: list[Run] = []
    for query in range(0, length, tile):
        key = min(max(query - kernel_size // 2, 0), length - span)
        first_key = tuple(
            min(max(i - kernel_size // 2, 0), length - kernel_size) - key
            for i in range(query, query + tile)
        )
        last = runs[-1] if runs else None
        if last and (last.query - last.key, last.first_key) == (
            query - key,
            first_key,
        ):
            runs[-1] = last._replace(tiles=last.tiles + 1)
        else:
            runs.append(Run(query, key, 1, first_key))
    return runs


def _move_and_mask(
    run: Run, span: int, kernel_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Table index of key - query and which keys are neighbours, (T, span)."""
    first = torch.tensor(run.first_key, device=device)[:, None]
    key = torch.arange(span, device=device)
    query = torch.arange(len(run.first_key), device=device)[:, None]
    move = key - query + (run.key - run.query) + kernel_size - 1
    inside = (key >= first) & (key < first + kernel_size)
    return move.clamp(0, 2 * kernel_size - 2), inside


def _cut(
    x: Tensor,
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
    step: int,
) -> Tensor:
    """Cuts (B, H, W, heads, d) into tiles, (B ny nx, heads, sy sx, d).

    Each of `rows` and `columns` is (start, number of tiles, side of a tile),
    and tiles begin `step` apart, so that they may overlap.
    """
    batch, _, _, heads, dim = x.shape
    (y, ny, sy), (left, nx, sx) = rows, columns
    x = x[:, y : y + (ny - 1) * step + sy]
    x = x[:, :, left : left + (nx - 1) * step + sx]
    x = x.unfold(1, sy, step).unfold(2, sx, step)  # B, ny, nx, h, d, sy, sx
    x = x.permute(0, 1, 2, 3, 5, 6, 4)
    return x.reshape(batch * ny * nx, heads, sy * sx, dim)


def _join(x: Tensor, batch: int, ny: int, nx: int, tile: int) -> Tensor:
    """Puts square tiles side by side again, (B, ny tile, nx tile, h, d)."""
    x = x.unflatten(0, (batch, ny, nx)).unflatten(4, (tile, tile))
    x = x.permute(0, 1, 4, 2, 5, 3, 6)  # B, ny, tile, nx, tile, heads, d
    return x.flatten(3, 4).flatten(1, 2)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.neighborhood_attention`."""
    batch, height, width = q.shape[:3]
    tile = kernel_size
    spans = [min(tile + kernel_size - 1, n) for n in (height, width)]
    runs_y = neighborhood_runs(height, tile, kernel_size)
    runs_x = neighborhood_runs(width, tile, kernel_size)
    q = F.pad(q, (0, 0, 0, 0, 0, -width % tile, 0, -height % tile))
    bias_table = bias_table.to(q.dtype)

    bands = []
    for run_y in runs_y:
        move_y, inside_y = _move_and_mask(
            run_y, spans[0], kernel_size, q.device
        )
        band = []
        for run_x in runs_x:
            move_x, inside_x = _move_and_mask(
                run_x, spans[1], kernel_size, q.device
            )
            bias = bias_table[
                :, move_y[:, None, :, None], move_x[None, :, None, :]
            ]  # heads, T, T, span, span
            inside = inside_y[:, None, :, None] & inside_x[None, :, None, :]
            bias = bias.masked_fill(~inside, float('-inf'))
            bias = bias.flatten(3, 4).flatten(1, 2)[None]
            queries_y = (run_y.query, run_y.tiles, tile)
            queries_x = (run_x.query, run_x.tiles, tile)
            keys_y = (run_y.key, run_y.tiles, spans[0])
            keys_x = (run_x.key, run_x.tiles, spans[1])
            out = F.scaled_dot_product_attention(
                _cut(q, queries_y, queries_x, tile),
                _cut(k, keys_y, keys_x, tile),
                _cut(v, keys_y, keys_x, tile),
                attn_mask=bias,
                dropout_p=dropout,
                scale=scale,
            )
            band.append(_join(out, batch, run_y.tiles, run_x.tiles, tile))
        bands.append(torch.cat(band, dim=2))
    return torch.cat(bands, dim=1)[:, :height, :width]


def _sides(layout: WindowLayout, seam: bool, like: Tensor) -> Tensor:
    """Which end of the map each row of a window is from, (w,)."""
    index = torch.arange(layout.size, device=like.device)
    return (index >= layout.size - layout.shift).long() * seam


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.window_attention`."""
    bias = bias.to(q.dtype)[None]
    outs = []
    for part in layout.parts():
        mask = bias
        if part.seam_y or part.seam_x:
            side_y = _sides(layout, part.seam_y, q)
            side_x = _sides(layout, part.seam_x, q)
            side = (side_y[:, None] + 2 * side_x).flatten()
            mask = bias.masked_fill(side[:, None] != side, float('-inf'))
        out = F.scaled_dot_product_attention(
            *(
                x[part.windows].flatten(0, 1).transpose(1, 2)
                for x in (q, k, v)
            ),
            attn_mask=mask,
            dropout_p=dropout,
            scale=scale,
        )
        outs.append(out.transpose(1, 2))  # n B, w w, heads, d
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).view(q.shape)
