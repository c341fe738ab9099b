# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Time and memory against pixels."""

from collections.abc import Sequence
from pathlib import Path

from .rows import Row
from .tables import conditions_line

MEASURES = (
    ('median_s', 'seconds'),
    ('peak_memory_mb', 'peak memory, MB'),
)


def plot(rows: Sequence[Row], file: Path) -> bool:
    """Draws one line for each backbone, one row of panels for each mode.

    Args:
        rows: Rows of backbones are drawn; those of attentions are not.
        file: Where the picture goes.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    rows = [r for r in rows if r['kind'] == 'backbone' and r['status'] == 'ok']
    modes = list(dict.fromkeys(row['mode'] for row in rows))
    if not modes:
        return False
    subjects = list(dict.fromkeys(row['subject'] for row in rows))
    ticks = {
        _pixels(row): f'{row["batch"]}x3x\n{row["height"]}x{row["width"]}'
        for row in rows
    }
    figure = Figure((10, 0.6 + 3.6 * len(modes)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(modes), 2, squeeze=False, sharex=True)
    for mode, pair in zip(modes, axes):
        for (measure, label), ax in zip(MEASURES, pair):
            for number, subject in enumerate(subjects):
                points = sorted(
                    (_pixels(row), row[measure])
                    for row in rows
                    if row['mode'] == mode
                    and row['subject'] == subject
                    and row[measure]
                )
                ax.plot(
                    *(zip(*points) if points else ([], [])),
                    marker='os^Dv<>'[number % 7],
                    markersize=5,
                    color=f'C{number}',
                    label=subject,
                )
            ax.set(xscale='log', yscale='log', title=f'{mode}: {label}')
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter('{x:g}')
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xticks(list(ticks), list(ticks.values()))
            ax.tick_params(axis='x', labelsize='small')
            ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel('input, spaced by pixels')
    axes[0, 0].legend()
    figure.suptitle(conditions_line(rows[0]), fontsize='small')
    figure.savefig(file, dpi=120)
    return True


def _pixels(row: Row) -> int:
    return row['batch'] * row['height'] * row['width']
