# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Points and attention over a picture, on axes of matplotlib."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import Normalize
from matplotlib.patheffects import withStroke
from torch import Tensor

from .recorder import BlockRecord

POINT_COLOURS = 'cool'
WEIGHT_COLOURS = 'YlOrRd_r'
QUERY_COLOUR = '#00e5ff'

# A circle of average weight is this wide, relative to the room for one point;
# areas are proportional to weights up to the largest and down to the smallest
# width, relative to the shorter side of the picture.
AVERAGE, SMALLEST, LARGEST = 0.42, 0.004, 0.13

MANY = 300  # points, from which on outlines only get in the way
MARGIN = 0.1  # of the picture, shown around it if points are there


def show_image(axes: Axes, image: np.ndarray, brightness: float = 0.6) -> None:
    """Shows an image, pale and dark enough for colours to stand out.

    Args:
        axes: Where to draw.
        image: (H, W, 3), RGB, uint8.
        brightness: 1 shows the image as it is.
    """
    image = image / 255
    grey = image.mean(axis=-1, keepdims=True)
    pale = 0.5 * image + 0.5 * grey if brightness < 1 else image
    axes.imshow(pale * brightness, interpolation='bilinear')
    axes.set_axis_off()
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)


def draw_points(
    axes: Axes,
    image: np.ndarray,
    record: BlockRecord,
    group: int | None = None,
    *,
    index: int = 0,
    norm: Normalize | None = None,
    trail_xy: np.ndarray | None = None,
) -> ScalarMappable:
    """Draws where the keys of a block are read.

    A line leads from each reference point to the point; the point's colour is
    how far it was moved, in pixels, and its area the attention it receives,
    if that was recorded.

    Args:
        axes: Where to draw.
        image: The picture (H, W, 3), RGB, uint8.
        record: Of the block.
        group: The group of heads whose points to draw, None for all.
        index: Of the picture in the batch.
        norm: Scale of the colours; None for this record's own.
        trail_xy: Where the lines start instead, (groups, Hk, Wk, 2).

    Returns:
        What a colour bar needs.
    """
    show_image(axes, image)
    chosen = slice(None) if group is None else slice(group, group + 1)
    points = record.points_xy[index, chosen].numpy()
    start = record.reference_xy[index].numpy()
    if trail_xy is not None:
        start = trail_xy[chosen]
    start = np.broadcast_to(start, points.shape).reshape(-1, 2)
    moved = record.displacement[index, chosen].flatten().numpy()
    received = (
        np.ones_like(moved)
        if record.received is None
        else record.by_group(record.received)[index, chosen].flatten().numpy()
    )
    points = points.reshape(-1, 2)
    norm = norm or Normalize(0, max(float(moved.max()), 1e-6))
    _show_outside(axes, points, image.shape)
    diameters = _diameters(received, image.shape)
    _lines(axes, start, points, moved, norm, diameters.mean() / 4)
    order = diameters.argsort()[::-1]  # none hides a smaller one
    _circles(
        axes,
        points[order],
        diameters[order],
        moved[order],
        norm,
        POINT_COLOURS,
        0.9,
    )
    return ScalarMappable(norm, POINT_COLOURS)


def draw_attention(
    axes: Axes,
    image: np.ndarray,
    record: BlockRecord,
    query: int = 0,
    head: int | None = None,
    *,
    index: int = 0,
    norm: Normalize | None = None,
) -> ScalarMappable:
    """Draws the keys that a query attends to.

    A circle's area and colour are the key's weight; the star is the query.

    Args:
        axes: Where to draw.
        image: The picture (H, W, 3), RGB, uint8.
        record: Of the block.
        query: Which of the recorded queries.
        head: Which head; None for the average of all heads, in which each
            group has points of its own and the weights of all points
            sum to 1.
        index: Of the picture in the batch.
        norm: Scale of the colours; None for this record's own.

    Returns:
        What a colour bar needs.
    """
    show_image(axes, image)
    points, weights = query_keys(record, query, head, index)
    norm = norm or Normalize(0, max(float(weights.max()), 1e-6))
    _show_outside(axes, points, image.shape)
    order = weights.argsort()  # the important ones on top
    points, weights = points[order], weights[order]
    diameters = _diameters(weights, image.shape)
    _circles(axes, points, diameters, weights, norm, WEIGHT_COLOURS, 0.75)
    star(axes, record.queries_xy[index, query], query)
    return ScalarMappable(norm, WEIGHT_COLOURS)


def query_keys(
    record: BlockRecord, query: int, head: int | None = None, index: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The keys of a query and its attention to them.

    Args:
        record: Of the block.
        query: Which of the recorded queries.
        head: Which head, None for the average.
        index: Of the picture in the batch.

    Returns:
        Points (N, 2) as (x, y), and weights (N,), which sum to 1.
    """
    weights = record.weights[index, :, query]
    if head is None:
        points = record.points_xy[index]
        weights = record.by_group(weights[None])[0] / record.groups
    else:
        points = record.points_xy[index, record.group_of(head)]
        weights = weights[head]
    return points.reshape(-1, 2).numpy(), weights.flatten().numpy()


def star(axes: Axes, xy: Tensor, query: int) -> None:
    """Marks a query, and writes its letter."""
    axes.plot(
        *xy.tolist(),
        marker='*',
        markersize=13,
        color=QUERY_COLOUR,
        markeredgecolor='black',
        markeredgewidth=1,
        zorder=5,
    )
    axes.annotate(
        query_name(query),
        xy.tolist(),
        xytext=(7, 5),
        textcoords='offset points',
        color=QUERY_COLOUR,
        fontsize=11,
        fontweight='bold',
        path_effects=[withStroke(linewidth=2, foreground='black')],
        zorder=6,
    )


def query_name(query: int) -> str:
    """A, B, ... and after 26 of them numbers."""
    return chr(ord('A') + query) if query < 26 else str(query)


def _show_outside(
    axes: Axes, points: np.ndarray, shape: tuple[int, ...]
) -> None:
    """Widens the axes to points (N, 2) a little outside the image."""
    last = np.array([shape[1], shape[0]]) - 0.5
    margin = MARGIN * (last + 0.5)
    low = np.clip(points.min(axis=0), -0.5 - margin, -0.5)
    high = np.clip(points.max(axis=0), last, last + margin)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])


def _diameters(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Widths of circles (N,), in pixels of an image (H, W, 3)."""
    height, width = shape[:2]
    room = np.sqrt(height * width / len(weights))
    wide = AVERAGE * room * np.sqrt(weights / max(weights.mean(), 1e-12))
    return wide.clip(
        *(limit * min(shape[:2]) for limit in (SMALLEST, LARGEST))
    )


def _lines(
    axes: Axes,
    start: np.ndarray,
    end: np.ndarray,
    values: np.ndarray,
    norm: Normalize,
    dot: float,
) -> None:
    """Lines (N, 2) to (N, 2), and a dot of this width at each start."""
    colours = matplotlib.colormaps[POINT_COLOURS](norm(values))
    axes.add_collection(
        LineCollection(
            np.stack([start, end], axis=1),
            colors=colours,
            linewidths=1.1 if len(start) < MANY else 0.7,
            alpha=0.8 if len(start) < MANY else 0.4,
            zorder=2,
        )
    )
    _circles(
        axes,
        start,
        np.full(len(start), dot),
        np.zeros(len(start)),
        Normalize(0, 1),
        'gray_r',
        0.8,
    )


def _circles(
    axes: Axes,
    centres: np.ndarray,
    diameters: np.ndarray,
    values: np.ndarray,
    norm: Normalize,
    colours: str,
    alpha: float,
) -> None:
    """Circles (N, 2) with diameters in pixels of the image."""
    axes.add_collection(
        EllipseCollection(
            diameters,
            diameters,
            np.zeros(len(diameters)),
            units='xy',
            offsets=centres,
            offset_transform=axes.transData,
            array=values,
            norm=norm,
            cmap=colours,
            alpha=alpha,
            edgecolors=(1, 1, 1, 0.7),
            linewidths=0.5 if len(diameters) < MANY else 0,
            zorder=3,
        )
    )
