# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Points and attention over a picture, on axes of matplotlib."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from .recorder import BlockRecord
from .scale import Scale, diameters, near

POINT_COLOURS = 'cool'
WEIGHT_COLOURS = 'YlOrRd_r'
QUERY_COLOUR = '#00e5ff'

MANY = 300  # with more points, outlines are left out


def show_image(
    axes: Axes,
    image: np.ndarray,
    brightness: float = 0.6,
    record: BlockRecord | None = None,
    index: int = 0,
) -> None:
    """Shows an image, dimmed so that colours stand out.

    Args:
        axes: Where to draw.
        image: (H, W, 3), RGB, uint8.
        brightness: 1 shows the image as it is.
        record: Of a block, to outline the part that the network sees, where
            that is not all of it.
        index: Of the picture in its batch.
    """
    image = image / 255
    grey = image.mean(axis=-1, keepdims=True)
    pale = 0.5 * image + 0.5 * grey if brightness < 1 else image
    axes.imshow(pale * brightness, interpolation='bilinear')
    axes.set_axis_off()
    height, width = image.shape[:2]
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    if record is None:
        return
    seen = record.frames[index].seen(record.input_size)
    left, top, right, bottom = seen
    if right - left < width - 1 or bottom - top < height - 1:
        axes.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                ec='white',
                lw=1,
                ls=(0, (4, 3)),
                zorder=4,
            )
        )


def block_points(
    record: BlockRecord, group: int | None = None, index: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The points of a block and the attention that each receives.

    Args:
        record: Of the block.
        group: The group of heads; None for all.
        index: Of the picture in the batch.

    Returns:
        Points (N, 2) as (x, y), and shares (N,) of the attention of a group;
        all the same if it was not recorded.
    """
    chosen = slice(None) if group is None else slice(group, group + 1)
    points = record.points_xy[index, chosen].reshape(-1, 2).numpy()
    if record.received is None:
        keys = record.points_xy.shape[2] * record.points_xy.shape[3]
        return points, np.full(len(points), 1 / keys)
    received = record.by_group(record.received)[index, chosen]
    return points, received.flatten().numpy()


def draw_points(
    axes: Axes,
    image: np.ndarray,
    record: BlockRecord,
    group: int | None = None,
    *,
    index: int = 0,
    scale: Scale | None = None,
    trail_xy: np.ndarray | None = None,
) -> ScalarMappable:
    """Draws where the keys of a block are read.

    A line leads from each reference point to its sampling point. The colour of
    a point is the distance in pixels. Its area is the attention that it
    receives, if that was recorded. Points far outside the picture are left
    out.

    Args:
        axes: Where to draw.
        image: The picture (H, W, 3), RGB, uint8.
        record: Of the block.
        group: The group of heads whose points to draw, None for all.
        index: Of the picture in the batch.
        scale: Of colours and areas; None for this record's own.
        trail_xy: Where the lines start instead, (groups, Hk, Wk, 2).

    Returns:
        The mappable for a colour bar.
    """
    chosen = slice(None) if group is None else slice(group, group + 1)
    points, received = block_points(record, group, index)
    start = record.reference_xy[index].numpy()
    if trail_xy is not None:
        start = trail_xy[chosen]
    shape = record.points_xy[index, chosen].shape
    start = np.broadcast_to(start, shape).reshape(-1, 2)
    moved = record.displacement[index, chosen].flatten().numpy()
    scale = scale or Scale.of(
        image.shape, [(points, received)], [moved], [start]
    )
    wide = _prepare(axes, image, record, received, scale, index)
    shown = near(points, image.shape) & near(start, image.shape)
    order = wide.argsort()[::-1]  # none hides a smaller one
    order = order[shown[order]]
    _lines(
        axes,
        start[shown],
        points[shown],
        moved[shown],
        scale.norm,
        wide.mean() / 4,
    )
    _circles(
        axes,
        points[order],
        wide[order],
        moved[order],
        scale.norm,
        POINT_COLOURS,
        0.9,
    )
    return ScalarMappable(scale.norm, POINT_COLOURS)


def draw_attention(
    axes: Axes,
    image: np.ndarray,
    record: BlockRecord,
    query: int = 0,
    head: int | None = None,
    *,
    index: int = 0,
    scale: Scale | None = None,
) -> ScalarMappable:
    """Draws the keys that a query attends to.

    The area and colour of a circle are the weight of the key; the star is the
    query.

    Args:
        axes: Where to draw.
        image: The picture (H, W, 3), RGB, uint8.
        record: Of the block.
        query: Which of the recorded queries.
        head: Which head; None for the average of all heads, which shows the
            points of all groups with weights that sum to 1.
        index: Of the picture in the batch.
        scale: Of colours and areas; None for this panel's own.

    Returns:
        What a colour bar needs.
    """
    points, weights = query_keys(record, query, head, index)
    scale = scale or Scale.of(image.shape, [(points, weights)])
    wide = _prepare(axes, image, record, weights, scale, index)
    order = weights.argsort()  # the important ones on top
    order = order[near(points, image.shape)[order]]
    _circles(
        axes,
        points[order],
        wide[order],
        weights[order],
        scale.norm,
        WEIGHT_COLOURS,
        0.75,
    )
    star(axes, record.queries_xy[index, query], query, image.shape)
    return ScalarMappable(scale.norm, WEIGHT_COLOURS)


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


def star(
    axes: Axes, xy: Tensor, query: int, shape: Sequence[int] | None = None
) -> None:
    """Marks a query, and writes its letter.

    Args:
        axes: Where to draw.
        xy: Its pixel.
        query: Its number.
        shape: (H, W) of the picture, so that the letter stays on it.
    """
    x, y = xy.tolist()
    right = shape is not None and x > 0.85 * shape[1]
    above = shape is None or y > 0.12 * shape[0]
    axes.plot(
        x,
        y,
        marker='*',
        markersize=13,
        color=QUERY_COLOUR,
        markeredgecolor='black',
        markeredgewidth=1,
        zorder=5,
        clip_on=False,
    )
    axes.annotate(
        query_name(query),
        (x, y),
        xytext=(-7 if right else 7, 5 if above else -5),
        textcoords='offset points',
        ha='right' if right else 'left',
        va='bottom' if above else 'top',
        color=QUERY_COLOUR,
        fontsize=11,
        fontweight='bold',
        path_effects=[withStroke(linewidth=2, foreground='black')],
        zorder=6,
    )


def query_name(query: int) -> str:
    """A, B, ... and after 26 of them numbers."""
    return chr(ord('A') + query) if query < 26 else str(query)


def _prepare(
    axes: Axes,
    image: np.ndarray,
    record: BlockRecord,
    weights: np.ndarray,
    scale: Scale,
    index: int,
) -> np.ndarray:
    """Shows the picture; returns widths of circles (N,)."""
    show_image(axes, image, record=record, index=index)
    axes.set_xlim(*scale.extent[:2])
    axes.set_ylim(*scale.extent[2:])
    return diameters(weights, scale.width, min(image.shape[:2]))


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
