# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What colours and areas mean, beside and below the panels of a figure."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .scale import Scale

DISPLACEMENT = 'moved by, pixels'
WEIGHT = 'attention weight'

FONT_SIZE = 8


def percent(share: float) -> str:
    """E.g. ``12 %``, two digits."""
    return f'{100 * share:.2g} %'


def round_down(value: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not larger."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-12)))
    return max(n for n in (1, 2, 5) if n * power <= value * 1.0001) * power


def add_legends(
    figure: Figure,
    axes: np.ndarray,
    panel: Axes,
    colours: ScalarMappable,
    scale: Scale,
    label: str,
) -> None:
    """A colour bar at the right, and circles with their weights below.

    Args:
        figure: Where to add them.
        axes: All panels.
        panel: One of them whose circles are drawn.
        colours: What the colours mean.
        scale: What the areas mean.
        label: Of the colours.
    """
    add_colour_bar(figure, axes, colours, label)
    what = 'attention weight' if label == WEIGHT else 'attention received'
    largest = round_down(scale.largest)
    weights = [largest, round_down(largest / 4), round_down(largest / 16)]
    title = f'Area: {what}'
    if scale.left_out:
        title += f'; {scale.left_out} points lie further outside'
    widths = scale.width * np.sqrt(weights)
    sizes = widths * _points_per_pixel(figure, panel)
    legend = figure.legend(
        handles=[
            Line2D(
                [],
                [],
                ls='none',
                marker='o',
                markersize=size,
                mfc='none',
                mec='0.3',
                label=percent(weight),
            )
            for size, weight in zip(sizes, weights)
        ],
        loc='outside lower center',
        ncols=len(weights),
        title=title,
        fontsize=FONT_SIZE,
        title_fontsize=FONT_SIZE,
        frameon=False,
        handlelength=max(1.1 * sizes[0] / FONT_SIZE, 1),
        handleheight=max(1.1 * sizes[0] / FONT_SIZE, 0.7),
        columnspacing=2.4,
    )
    # The legend itself has taken room from the panels.
    sizes = widths * _points_per_pixel(figure, panel)
    for handle, size in zip(legend.legend_handles, sizes):
        handle.set_markersize(size)


def _points_per_pixel(figure: Figure, panel: Axes) -> float:
    """How large a pixel of the picture is, in points of print."""
    figure.draw_without_rendering()
    ends = panel.transData.transform([(0, 0), (1, 0)])
    return (ends[1, 0] - ends[0, 0]) * 72 / figure.dpi


def add_colour_bar(
    figure: Figure,
    axes: np.ndarray,
    colours: ScalarMappable,
    label: str,
) -> None:
    """A colour bar with few ticks of few digits."""
    rows = axes.shape[0] if axes.ndim > 1 else 1
    bar = figure.colorbar(
        colours,
        ax=axes,
        fraction=0.04,
        pad=0.01,
        shrink=0.92 if rows == 1 else 0.6,
        aspect=25,
    )
    bar.locator = MaxNLocator(5)
    if label == WEIGHT:
        label = f'{label}, from {percent(colours.norm.vmin)}'
        bar.formatter = FuncFormatter(lambda value, _: percent(value))
    else:
        bar.formatter = FuncFormatter(lambda value, _: f'{value:g}')
    bar.update_ticks()
    bar.set_label(label, fontsize=FONT_SIZE + 1)
    bar.ax.tick_params(labelsize=FONT_SIZE)
