# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whole figures: one block, chosen queries, or many blocks on a sheet."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .drawing import (
    draw_attention,
    draw_points,
    query_keys,
    query_name,
    show_image,
    star,
)
from .recorder import BlockRecord

DISPLACEMENT = 'moved by, pixels'
WEIGHT = 'attention weight'


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
    label: str,
    title: str = '',
    columns: int = 5,
) -> Figure:
    """Lays panels of one picture out, with a colour bar they share.

    Args:
        image: The picture (H, W, 3).
        panels: A title and what draws it, for each panel.
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
            (width * shape + 0.25) * rows + (0.3 if title else 0),
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
    bar = figure.colorbar(
        colours,
        ax=axes,
        fraction=0.04,
        pad=0.01,
        shrink=0.92 if rows == 1 else 0.6,
        aspect=25,
    )
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def points_figure(
    image: np.ndarray,
    records: Sequence[BlockRecord],
    group: int | None = None,
    title: str = '',
) -> Figure:
    """The sampled points of one or many blocks, see :func:`draw_points`.

    Args:
        image: The picture (H, W, 3), RGB, uint8.
        records: Of the blocks; their first picture is drawn.
        group: The group of heads; None draws those of one block side by side,
            and those of many blocks on one another.
        title: Of the whole.
    """
    largest = max(float(r.displacement[0].max()) for r in records)
    norm = Normalize(0, max(largest, 1e-6))
    which: list[tuple[BlockRecord, int | None]] = [(r, group) for r in records]
    if group is None and len(records) == 1:
        which = [(records[0], i) for i in range(records[0].groups)]

    def panel(record: BlockRecord, group: int | None) -> Panel:
        parts = [] if len(records) == 1 else [block_title(record)]
        if len(records) == 1 or group is not None:
            parts.append(f'group {group}')
        return ', '.join(parts), lambda axes: draw_points(
            axes, image, record, group, norm=norm
        )

    if len(records) == 1:
        title = f'{title} {block_title(records[0])}'.strip()
    panels = [panel(*one) for one in which]
    columns = 4 if len(panels) in (4, 7, 8, 12, 16) else 5
    columns = 3 if len(panels) in (3, 6, 9) else columns
    return sheet(image, panels, DISPLACEMENT, title, columns)


def attention_figure(
    image: np.ndarray,
    records: Sequence[BlockRecord],
    heads: Sequence[int] | None = None,
    title: str = '',
) -> Figure:
    """What chosen queries attend to, see :func:`draw_attention`.

    Args:
        image: The picture (H, W, 3), RGB, uint8.
        records: Of the blocks; their first picture is drawn, with one panel
            for each block, query and head.
        heads: Which heads, None for their average.
        title: Of the whole.
    """
    queries = range(records[0].queries_xy.shape[1])
    which = [
        (record, query, head)
        for record in records
        for query in queries
        for head in ([None] if heads is None else heads)
    ]
    top = max(float(query_keys(*one)[1].max()) for one in which)
    norm = Normalize(0, top)

    def panel(record: BlockRecord, query: int, head: int | None) -> Panel:
        parts = [] if len(records) == 1 else [block_title(record)]
        if len(queries) > 1:
            parts.append(f'query {query_name(query)}')
        if head is not None:
            parts.append(f'head {head} (group {record.group_of(head)})')
        name = ', '.join(parts) or 'all heads'
        return name, lambda axes: draw_attention(
            axes, image, record, query, head, norm=norm
        )

    def original(shown: Sequence[int]) -> Panel:
        def draw(axes: Axes) -> None:
            show_image(axes, image, brightness=1)
            for query in shown:
                star(axes, records[0].queries_xy[0, query], query)

        return 'picture', draw

    if len(records) == 1:
        title = f'{title} {block_title(records[0])}'.strip()
    if heads is None:
        title = f'{title}, average of all heads'.removeprefix(', ')
    if heads is not None and len(which) > len(heads) and len(heads) < 6:
        # A row for each query, with the picture at its head.
        panels = []
        for i in range(0, len(which), len(heads)):
            panels.append(original([which[i][1]]))
            panels += [panel(*one) for one in which[i : i + len(heads)]]
        return sheet(image, panels, WEIGHT, title, len(heads) + 1)
    panels = [original(queries), *(panel(*one) for one in which)]
    return sheet(image, panels, WEIGHT, title)


def save(figure: Figure, out: str | Path, dpi: int = 150) -> Path:
    """Writes a figure; the suffix is its format."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=dpi)
    return out


def to_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """A figure as an image (H, W, 3), RGB, uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()
