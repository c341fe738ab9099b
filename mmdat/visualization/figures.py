# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whole figures: one block, chosen queries, or many blocks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from .drawing import (
    block_points,
    draw_attention,
    draw_points,
    query_keys,
    query_name,
    show_image,
    star,
)
from .legends import DISPLACEMENT, WEIGHT, add_legends
from .recorder import BlockRecord
from .scale import Scale

# Of files that a figure can be written to.
SUFFIXES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg', '.webp')
# Journals ask for outlines of letters that can be searched and edited.
FONTS = {'pdf.fonttype': 42, 'ps.fonttype': 42, 'svg.fonttype': 'none'}


def block_title(record: BlockRecord) -> str:
    """E.g. ``stage 2, block 1 (stride 16)``."""
    return (
        f'stage {record.stage}, block {record.block} (stride {record.stride})'
    )


def panel_width(columns: int, shape: float) -> float:
    """Inches of a panel: few panels are large, tall pictures are narrow.

    Args:
        columns: Panels in a row.
        shape: Height over width of the picture.
    """
    return (2.1 + 4.4 / columns) / max(shape, 1) ** 0.5


Panel = tuple[str, Callable[[Axes], ScalarMappable | None]]


def sheet(
    image: np.ndarray,
    panels: Sequence[Panel],
    scale: Scale,
    label: str,
    title: str = '',
    columns: int = 5,
) -> Figure:
    """Lays panels of one picture out, with the legends they share.

    Args:
        image: The picture (H, W, 3).
        panels: A title and what draws it, for each panel.
        scale: Of colours and areas, which all panels share.
        label: Of the colour bar, whose colours the last panel gives.
        title: Of the whole.
        columns: Panels in a row, at most.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    shape = image.shape[0] / image.shape[1]
    width = panel_width(columns, shape)
    figure = Figure(
        figsize=(
            width * columns + 0.8,
            (width * shape + 0.25) * rows + (0.8 if title else 0.5),
        ),
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.05, hspace=0, wspace=0)
    axes = figure.subplots(rows, columns, squeeze=False)
    colours = None
    for one in axes.flat:
        one.set_axis_off()
    for one, (name, draw) in zip(axes.flat, panels):
        colours = draw(one) or colours
        one.set_title(name, fontsize=9, pad=3)
    if title:
        figure.suptitle(title, fontsize=10)
    last = axes.flat[len(panels) - 1]
    add_legends(figure, axes, last, colours, scale, label)
    return figure


def points_figure(
    image: np.ndarray,
    records: Sequence[BlockRecord],
    group: int | None = None,
    title: str = '',
) -> Figure:
    """The sampled points of one or many blocks, see [`draw_points`][].

    Args:
        image: The picture (H, W, 3), RGB, uint8.
        records: Of the blocks; their first picture is drawn.
        group: The group of heads; None draws the groups of one block side by
            side, and those of many blocks in one panel each.
        title: Title of the figure, such as the source of the weights.
    """
    which: list[tuple[BlockRecord, int | None]] = [(r, group) for r in records]
    if group is None and len(records) == 1:
        which = [(records[0], i) for i in range(records[0].groups)]
    scale = points_scale(image, which)

    def panel(record: BlockRecord, group: int | None) -> Panel:
        parts = [] if len(records) == 1 else [block_title(record)]
        if len(records) == 1 or group is not None:
            parts.append(f'group {group}')
        return ', '.join(parts), lambda axes: draw_points(
            axes, image, record, group, scale=scale
        )

    if len(records) == 1:
        title = _joined(title, block_title(records[0]))
    panels = [panel(*one) for one in which]
    columns = 4 if len(panels) in (4, 7, 8, 12, 16) else 5
    columns = 3 if len(panels) in (3, 6, 9) else columns
    return sheet(image, panels, scale, DISPLACEMENT, title, columns)


def points_scale(
    image: np.ndarray, which: Sequence[tuple[BlockRecord, int | None]]
) -> Scale:
    """The scale for points of some blocks and groups beside each other."""
    return Scale.of(
        image.shape,
        [block_points(*one) for one in which],
        [
            record.displacement[0, slice(None) if group is None else group]
            .flatten()
            .numpy()
            for record, group in which
        ],
        [record.reference_xy[0].reshape(-1, 2).numpy() for record, _ in which],
    )


def attention_figure(
    image: np.ndarray,
    records: Sequence[BlockRecord],
    heads: Sequence[int] | None = None,
    title: str = '',
) -> Figure:
    """What chosen queries attend to, see [`draw_attention`][].

    Args:
        image: The picture (H, W, 3), RGB, uint8.
        records: Of the blocks; their first picture is drawn, with one panel
            for each block, query and head.
        heads: Which heads, None for their average.
        title: Of the whole, such as what the weights are.
    """
    queries = range(records[0].queries_xy.shape[1])
    which = [
        (record, query, head)
        for record in records
        for query in queries
        for head in ([None] if heads is None else heads)
    ]
    scale = Scale.of(image.shape, [query_keys(*one) for one in which])

    def panel(record: BlockRecord, query: int, head: int | None) -> Panel:
        parts = [] if len(records) == 1 else [block_title(record)]
        if len(queries) > 1:
            parts.append(f'query {query_name(query)}')
        if head is not None:
            parts.append(f'head {head} (group {record.group_of(head)})')
        name = ', '.join(parts) or 'all heads'
        return name, lambda axes: draw_attention(
            axes, image, record, query, head, scale=scale
        )

    def original(shown: Sequence[int]) -> Panel:
        def draw(axes: Axes) -> None:
            show_image(axes, image, brightness=1, record=records[0])
            for query in shown:
                star(axes, records[0].queries_xy[0, query], query, image.shape)
            axes.set_xlim(*scale.extent[:2])
            axes.set_ylim(*scale.extent[2:])

        return 'picture', draw

    if len(records) == 1:
        title = _joined(title, block_title(records[0]))
    if heads is None:
        title = _joined(title, 'average of all heads')
    if heads is not None and len(which) > len(heads) and len(heads) < 6:
        # A row for each query, with the picture at its head.
        panels = []
        for i in range(0, len(which), len(heads)):
            panels.append(original([which[i][1]]))
            panels += [panel(*one) for one in which[i : i + len(heads)]]
        return sheet(image, panels, scale, WEIGHT, title, len(heads) + 1)
    panels = [original(queries), *(panel(*one) for one in which)]
    return sheet(image, panels, scale, WEIGHT, title)


def _joined(*parts: str) -> str:
    return ', '.join(part for part in parts if part)


def save(figure: Figure, out: str | Path, dpi: int = 150) -> Path:
    """Writes a figure; the suffix is its format.

    Text stays text: TrueType fonts in PDF, text elements in SVG.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(FONTS):
        figure.savefig(out, dpi=dpi)
    return out


def to_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """A figure as an image (H, W, 3), RGB, uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
