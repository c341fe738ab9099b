# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The figure of the papers: pictures by stages, keys of one query each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .drawing import draw_attention, query_keys, show_image, star
from .figures import block_title
from .findings import Findings
from .legends import WEIGHT, add_colour_bar, add_legends
from .picture import Picture
from .recorder import BlockRecord
from .scale import Scale

PANEL = 2.2  # inches


@dataclass(frozen=True)
class Row:
    """One picture, with the records of one query.

    Attributes:
        image: (H, W, 3), RGB, uint8.
        records: Of one block of each stage.
    """

    image: np.ndarray
    records: Sequence[BlockRecord]


def choose_query(picture: Picture, found: Findings) -> tuple[float, float]:
    """A query pixel: on the most certain object, or in the middle.

    Args:
        picture: The picture.
        found: What a model finds in it.

    Returns:
        Pixel (x, y): of the mask the one next to its centre, else the centre
        of the box, else of the part that the network sees.
    """
    height, width = picture.frame.size
    if found.masks is not None and len(found.masks) and found.masks[0].any():
        yx = np.argwhere(found.masks[0])
        y, x = yx[np.abs(yx - yx.mean(axis=0)).sum(axis=1).argmin()]
    elif len(found.boxes):
        x, y = found.boxes[0].reshape(2, 2).mean(axis=0)
    else:
        left, top, right, bottom = picture.frame.seen(picture.inputs.shape[2:])
        x, y = (left + right) / 2, (top + bottom) / 2
    return (
        float(np.clip(x, 0, width - 1)),
        float(np.clip(y, 0, height - 1)),
    )


def paper_figure(rows: Sequence[Row], title: str = '') -> Figure:
    """Draws a query and its keys, by weight, at every stage.

    The first column is the picture with the query, a star. Each other column
    is a block: the area and the colour of a key are its weight, averaged over
    the heads. Colours mean the same in all panels. Areas do so if all pictures
    have the same size, and otherwise within a row.

    Args:
        rows: The pictures, with the same blocks each.
        title: Title of the figure, such as the source of the weights.
    """
    drawn = [[query_keys(one, 0) for one in row.records] for row in rows]
    scales = [
        Scale.of(row.image.shape, some) for row, some in zip(rows, drawn)
    ]
    weights = [weights for some in drawn for _, weights in some]
    low = min(float(one.min()) for one in weights)
    high = max(float(one.max()) for one in weights)
    norm = Normalize(low, max(high, low + 1e-6))
    alike = len({row.image.shape for row in rows}) == 1
    if alike:
        scales = [
            replace(
                scales[0],
                width=min(one.width for one in scales),
                largest=max(one.largest for one in scales),
                extent=(
                    min(one.extent[0] for one in scales),
                    max(one.extent[1] for one in scales),
                    max(one.extent[2] for one in scales),
                    min(one.extent[3] for one in scales),
                ),
                left_out=sum(one.left_out for one in scales),
            )
        ] * len(rows)
    scales = [replace(one, norm=norm) for one in scales]
    columns = 1 + len(rows[0].records)
    shapes = [row.image.shape[0] / row.image.shape[1] for row in rows]
    figure = Figure(
        figsize=(PANEL * columns + 0.8, PANEL * sum(shapes) + 0.8),
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
    axes = figure.subplots(
        len(rows), columns, squeeze=False, height_ratios=shapes
    )
    for line, row, scale in zip(axes, rows, scales):
        show_image(line[0], row.image, 1, row.records[0])
        star(line[0], row.records[-1].queries_xy[0, 0], 0, row.image.shape)
        line[0].set_xlim(*scale.extent[:2])
        line[0].set_ylim(*scale.extent[2:])
        for one, block in zip(line[1:], row.records):
            colours = draw_attention(one, row.image, block, scale=scale)
    axes[0, 0].set_title('query', fontsize=9, pad=3)
    for one, block in zip(axes[0, 1:], rows[0].records):
        one.set_title(block_title(block), fontsize=9, pad=3)
    if title:
        figure.suptitle(title, fontsize=10)
    if alike:
        add_legends(figure, axes, axes[0, 1], colours, scales[0], WEIGHT)
    else:
        add_colour_bar(figure, axes, colours, WEIGHT)
    return figure
