# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Tables and plots of finished runs."""

import csv
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt

from .running import main_metric
from .studies import RANGES

FIELDS = (
    'label',
    'seeds',
    'metric',
    'mean',
    'deviation',
    'lowest',
    'highest',
    'parameters',
    'multiply_adds',
    'seconds',
    'cpu_seconds',
    'memory_mib',
    'memory_of',
)
Row = dict[str, Any]


def summarise(label: str, results: dict[int, dict[str, Any]]) -> Row:
    """One row: a model over its seeds.

    Args:
        label: Of the model.
        results: What ``.running.train`` returned for each seed.

    Returns:
        A value for each of ``FIELDS``, and ``values`` of the metric in
        per cent; ``deviation`` is that of the sample, None for one seed.
    """
    names, values = zip(*(main_metric(r) for r in results.values()))
    first = next(iter(results.values()))
    return dict(
        label=label,
        seeds=' '.join(map(str, results)),
        metric=names[0],
        mean=mean(values),
        deviation=stdev(values) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
        parameters=first['parameters'],
        multiply_adds=first['multiply_adds'],
        seconds=mean(r['seconds'] for r in results.values()),
        cpu_seconds=mean(r['cpu_seconds'] for r in results.values()),
        memory_mib=max(r['memory_mib'] for r in results.values()),
        memory_of=first['memory_of'],
        values=list(values),
    )


def markdown(rows: list[Row]) -> str:
    """A table for people."""
    lines = [
        f'| model | seeds | {rows[0]["metric"]}, % | parameters, M '
        f'| multiply-adds, M | seconds a run | of processor time '
        f'| peak memory of the {rows[0]["memory_of"]}, MiB |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        spread = (
            ''
            if row['deviation'] is None
            else f' ± {row["deviation"]:.1f} '
            f'({row["lowest"]:.1f} to {row["highest"]:.1f})'
        )
        lines.append(
            f'| {row["label"]} | {row["seeds"]} | {row["mean"]:.1f}{spread} '
            f'| {row["parameters"] / 1e6:.3f} '
            f'| {row["multiply_adds"] / 1e6:.1f} | {row["seconds"]:.0f} '
            f'| {row["cpu_seconds"]:.0f} '
            f'| {row["memory_mib"]:.0f} |'
        )
    return '\n'.join(lines) + '\n'


def write(study: str, rows: list[Row], folder: Path) -> list[Path]:
    """Writes ``STUDY.md``, ``.csv`` and ``.png``; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{study}{suffix}' for suffix in ('.md', '.csv', '.png')]
    paths[0].write_text(markdown(rows), encoding='utf-8')
    with open(paths[1], 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
    plot(study, rows, paths[2])
    return paths


def plot(study: str, rows: list[Row], path: Path) -> None:
    """Draws every seed as a point and the means."""
    is_range = study == 'range'
    size = (6.4, 3.6) if is_range else (6.4, 1.2 + 0.36 * len(rows))
    figure, axes = plt.subplots(figsize=size, layout='constrained')
    places = list(range(len(rows)))
    if is_range:
        by_label = {f's = {s}': s for s in RANGES}
        places = [by_label[row['label']] for row in rows]
    metric = f'{rows[0]["metric"]}, %'
    for place, row in zip(places, rows):
        seeds = [place] * len(row['values'])
        xy = (seeds, row['values']) if is_range else (row['values'], seeds)
        axes.plot(*xy, 'o', color='tab:blue', alpha=0.5, ms=6)
    means = [row['mean'] for row in rows]
    if is_range:
        axes.plot(places, means, '_-', color='black', ms=14)
        axes.set_xticks(places)
        axes.set_xlabel('offset range s, in cells of the key grid')
        axes.set_ylabel(metric)
    else:
        axes.plot(means, places, '|', color='black', ms=16, mew=2)
        axes.set_yticks(places, [row['label'] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(metric)
    axes.grid(alpha=0.3)
    axes.set_title(
        f'{study}: a dot for each seed, a bar for the mean', fontsize=10
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
