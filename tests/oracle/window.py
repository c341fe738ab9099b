# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""L and S: attention within local and shifted windows (DAT, sec. 3.1)."""

import math

import numpy as np

from .layers import attend, linear, merge_heads, split_heads
from .layout import Params


def relative_bias(table: np.ndarray, window: int) -> np.ndarray:
    """The bias of every pair of places within one window.

    Args:
        table: ((2w - 1)^2, heads), indexed by (dy + w - 1)(2w - 1) + (dx +
            w - 1) with (dy, dx) the query's place minus the key's.
        window: w.

    Returns:
        (heads, w*w, w*w), queries before keys.
    """
    side = 2 * window - 1
    places = [(y, x) for y in range(window) for x in range(window)]
    bias = np.empty((table.shape[1], len(places), len(places)))
    for i, (query_y, query_x) in enumerate(places):
        for j, (key_y, key_x) in enumerate(places):
            dy, dx = query_y - key_y, query_x - key_x
            row = (dy + window - 1) * side + (dx + window - 1)
            bias[:, i, j] = table[row]
    return bias


def pad_to_multiple(x: np.ndarray, multiple: int) -> np.ndarray:
    """Adds zeros right and below until the sides are multiples."""
    height, width, _ = x.shape
    return np.pad(x, ((0, -height % multiple), (0, -width % multiple), (0, 0)))


def regions(size: int, window: int, shift: int) -> np.ndarray:
    """Which part of a rolled axis each place came from.

    The axis of `size` places is cut at -window and -shift; the last part
    was rolled over from the other end.

    Returns:
        (size,) of 0, 1, 2.
    """
    labels = np.zeros(size, dtype=int)
    labels[size - window :] = 1
    labels[size - shift :] = 2
    return labels


def _window_attention(x, params, heads, window, shift):
    height, width, channels = x.shape
    padded = pad_to_multiple(x, window)
    rows, columns, _ = padded.shape
    rolled = np.roll(padded, (-shift, -shift), axis=(0, 1))
    if shift:
        row_region = regions(rows, window, shift)
        column_region = regions(columns, window, shift)
    else:
        row_region = np.zeros(rows, dtype=int)
        column_region = np.zeros(columns, dtype=int)

    bias = relative_bias(params['relative_position_bias_table'], window)
    out = np.empty_like(rolled)
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            here = (slice(top, top + window), slice(left, left + window))
            tokens = rolled[here].reshape(-1, channels)
            qkv = linear(
                tokens, params['proj_qkv.weight'], params['proj_qkv.bias']
            )
            q, k, v = (
                split_heads(part, heads) for part in np.split(qkv, 3, axis=-1)
            )
            region = (
                3 * row_region[here[0], None] + column_region[None, here[1]]
            ).reshape(-1)
            forbidden = region[:, None] != region[None, :]
            scores = bias + np.where(forbidden, -np.inf, 0.0)
            mixed = linear(
                merge_heads(attend(q, k, v, scores)),
                params['proj_out.weight'],
                params['proj_out.bias'],
            )
            out[here] = mixed.reshape(window, window, channels)
    return np.roll(out, (shift, shift), axis=(0, 1))[:height, :width]


def window_attention(
    x: np.ndarray, params: Params, heads: int, window: int
) -> np.ndarray:
    """L: attention within windows.

    The map is zero-padded right and below to a multiple of the window; the
    padded places are ordinary keys.

    Args:
        x: Normed input, (H, W, C).
        params: `proj_qkv.{weight,bias}`, `proj_out.{weight,bias}`,
            `relative_position_bias_table` ((2w - 1)^2, heads).

    Returns:
        (H, W, C).
    """
    return _window_attention(x, params, heads, window, shift=0)


def shifted_window_attention(
    x: np.ndarray, params: Params, heads: int, window: int
) -> np.ndarray:
    """S: the same on a map rolled by ceil(w / 2) (Swin rolls by the floor).

    Pairs that the roll brought together are forbidden.
    """
    shift = math.ceil(window / 2)
    return _window_attention(x, params, heads, window, shift)
