# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Losses and metrics over a training, several runs beside each other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..utils.errors import UserError

SCALARS = 'vis_data/scalars.json'
# Logged at each step, but not curves.
NOT_CURVES = ('step', 'iter', 'epoch')
COLUMNS = 3


@dataclass(frozen=True)
class Run:
    """What a training logged.

    Attributes:
        name: Of its work dir.
        curves: Iterations and values, (2, N), by name of the scalar.
    """

    name: str
    curves: Mapping[str, np.ndarray]


def read_run(work_dir: str | Path) -> Run:
    """Reads what mmengine's local backend wrote.

    A resumed training has one file for each part; a later file replaces
    iterations that were run again. Values by epoch, such as those of a
    validation, are placed at the last iteration of the epoch.

    Args:
        work_dir: Work dir of the training, or one of its dated folders.

    Raises:
        UserError: There are no scalars.
    """
    work_dir = Path(work_dir)
    files = sorted(
        {*work_dir.glob(f'*/{SCALARS}'), *work_dir.glob(SCALARS)},
        key=lambda path: path.parts[-3],
    )
    files = [path for path in files if path.stat().st_size]
    if not files:
        raise UserError(
            f'{work_dir} has no {SCALARS} in it or in its dated folders; name '
            f'the work dir of a training.'
        )
    curves: dict[str, dict[float, float]] = {}
    ends: dict[int, float] = {}  # last iteration of each epoch
    for path in files:
        first = True
        for entry in _entries(path):
            at = float(entry['step'])
            if 'epoch' in entry and 'loss' in entry:
                if first:  # what follows was run again
                    first = False
                    for points in curves.values():
                        for later in [x for x in points if x >= at]:
                            del points[later]
                ends[int(entry['epoch'])] = at
            if 'loss' not in entry and ends:
                at = ends.get(int(entry['step']), at)
            for name, value in entry.items():
                if name not in NOT_CURVES and isinstance(value, int | float):
                    curves.setdefault(name, {})[at] = float(value)
    return Run(
        work_dir.resolve().name,
        {
            name: np.array(sorted(points.items())).T
            for name, points in curves.items()
            if points
        },
    )


def _entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; one that was cut off at its end is left out."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and 'step' in entry:
            entries.append(entry)
    return entries


def choose_curves(
    runs: Sequence[Run], names: Sequence[str] | None = None
) -> list[str]:
    """The curves to draw.

    Args:
        runs: The runs.
        names: Names, or their beginnings; None for the loss and all validation
            metrics.

    Raises:
        UserError: No run has one of them.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.curves))
    if names is None:
        found = [
            name
            for name in known
            if name == 'loss'
            or ('/' in name and not name.startswith('points'))
        ]
        return found or known[:1]
    found = []
    for name in names:
        some = [one for one in known if one == name] or [
            one for one in known if one.startswith(name)
        ]
        if not some:
            raise UserError(
                f'No run logged {name}; there are {", ".join(known)}.'
            )
        found += some
    return list(dict.fromkeys(found))


def smooth(values: np.ndarray, strength: float) -> np.ndarray:
    """Exponential moving average of (N,), without bias towards 0.

    Args:
        values: The values.
        strength: Weight of past values, from 0 (none) to below 1.
    """
    smoothed, total, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total = strength * total + (1 - strength) * value
        weight = strength * weight + (1 - strength)
        smoothed[i] = total / weight
    return smoothed


def curves_figure(
    runs: Sequence[Run],
    names: Sequence[str],
    strength: float = 0.0,
    log_x: bool = False,
    log_y: bool = False,
) -> Figure:
    """One panel for each scalar, one line for each run.

    Args:
        runs: The runs.
        names: The scalars.
        strength: Of the smoothing, see ``smooth``; the logged values stay as a
            pale line.
        log_x: Whether iterations are on a logarithmic axis.
        log_y: Whether values are.
    """
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(
        figsize=(3.6 * columns + 0.4, 2.6 * rows + 0.4), layout='constrained'
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = matplotlib.colormaps['tab10']
    for one in axes[len(names) :]:
        one.set_axis_off()
    for one, name in zip(axes, names):
        for i, run in enumerate(runs):
            if name not in run.curves:
                continue
            steps, values = run.curves[name]
            marker = 'o' if len(steps) < 12 else None
            if strength > 0:
                one.plot(steps, values, color=colours(i % 10), alpha=0.25)
                values = smooth(values, strength)
            one.plot(
                steps,
                values,
                color=colours(i % 10),
                label=run.name,
                marker=marker,
                markersize=3,
            )
        one.set_title(name, fontsize=9)
        one.set_xlabel('iteration', fontsize=8)
        one.tick_params(labelsize=8)
        one.grid(alpha=0.25)
        if log_x:
            one.set_xscale('log')
        if log_y:
            one.set_yscale('log')
    handles = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if len(runs) > 1:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc='outside lower center',
            ncols=min(len(handles), 4),
            fontsize=8,
            frameon=False,
        )
    return figure


def name_apart(runs: Sequence[Run], work_dirs: Sequence[str]) -> list[Run]:
    """Runs with unique names, which are paths where folders agree."""
    names = [run.name for run in runs]
    return [
        Run(str(path), run.curves) if names.count(run.name) > 1 else run
        for run, path in zip(runs, work_dirs)
    ]
