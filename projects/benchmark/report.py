# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Measurements as rows, a CSV file, tables and a picture."""

import csv
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cases import Baseline, Conditions, Measurement
from rich.table import Table

from mmdat.version import __version__

Row = dict[str, Any]
NOTE = (
    'Times are medians over the rounds, in which the processes of a table '
    'take turns; in its turn a process whose first pass took less than two '
    'seconds makes one that is not timed first. Ratios are medians of the '
    'ratios within a round, below 1 is faster. Memory is the increase at the '
    'peak of the first pass over what the process had with weights and input '
    'in place, in MB of 10^6 bytes; in training it includes the gradients of '
    'the weights.'
)
MEASURES = (
    ('median_s', 'seconds'),
    ('peak_memory_mb', 'peak memory, MB'),
)


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load_average() -> float | None:
    """Processes that wanted to compute in the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def warning(conditions: Conditions) -> str | None:
    """What to say if other programs compute as well, or None."""
    cores = os.cpu_count() or 1
    if conditions.load is None or conditions.load < 0.3 * cores:
        return None
    return (
        f'The machine is busy (load average {conditions.load:g} on {cores} '
        f'cores): times, and ratios too, are worth little.'
    )


def describe(conditions: Conditions) -> dict[str, str | int]:
    """Columns that are the same in all rows of a run."""
    device = torch.device(conditions.device)
    name = conditions.device
    if device.type == 'cuda':
        name = f'{name} ({torch.cuda.get_device_name(device)})'
    return dict(
        date=datetime.now().astimezone().isoformat(timespec='minutes'),
        mmdat=__version__,
        torch=torch.__version__,
        machine=f'{cpu_model()}, {os.cpu_count()} cores',
        load=conditions.load,
        threads=conditions.threads or torch.get_num_threads(),
        device=name,
        dtype=conditions.dtype,
    )


@dataclass(frozen=True)
class Ratio:
    """A subject over its baseline; below 1 is better.

    Attributes:
        time: Median of the ratios of the rounds.
        memory: Ratio of the peaks, None where one was not measured.
    """

    time: float
    memory: float | None


def paired(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of time over the baseline's time."""
    return median(a / b for a, b in zip(times, base, strict=True))


def compare(
    measurement: Measurement,
    others: Sequence[Measurement],
    baseline: Baseline,
) -> Ratio | None:
    """Holds a measurement against the baseline of its setting.

    Args:
        measurement: Of whom.
        others: All measurements of the same setting.
        baseline: Which of them to compare with.

    Returns:
        The ratio, None if either was not measured.
    """
    label = baseline.label_for(measurement)
    base = [m for m in others if m.case.subject.label == label]
    if not base or not base[0].seconds or not measurement.seconds:
        return None
    memory = None
    if base[0].memory and measurement.memory is not None:
        memory = measurement.memory / base[0].memory
    return Ratio(paired(measurement.seconds, base[0].seconds), memory)


def make_rows(
    measurements: Sequence[Measurement],
    conditions: Conditions,
    baselines: Sequence[Baseline],
) -> list[Row]:
    """Turns the measurements of one setting into rows.

    Memory is in MB of 10^6 bytes. ``rounds_s`` holds the seconds of each
    round, by which rows of the same setting can be paired again.
    """
    same = describe(conditions)
    rows = []
    for measurement in measurements:
        subject, setting = measurement.case.subject, measurement.case.setting
        times, memory = measurement.seconds, measurement.memory
        row = dict(
            same,
            setting=setting.label,
            subject=subject.label,
            name=subject.name,
            backend=subject.backend or 'auto',
            compiled=subject.compiled,
            kind='attention' if setting.attention else 'backbone',
            mode=setting.mode,
            batch=setting.batch,
            height=setting.height,
            width=setting.width,
            parameters=measurement.parameters,
            status=measurement.status,
            runs=len(times),
            median_s=median(times) if times else None,
            min_s=min(times, default=None),
            max_s=max(times, default=None),
            rounds_s=' '.join(f'{t:.6g}' for t in times),
            peak_memory_mb=None if memory is None else round(memory / 1e6, 2),
            memory_source=measurement.memory_source,
        )
        for name in baseline_names(baselines):
            ratios = [
                compare(measurement, measurements, baseline)
                for baseline in baselines
                if baseline.name == name
            ]
            ratio = next((r for r in ratios if r is not None), None)
            row[f'time / {name}'] = ratio and ratio.time
            row[f'memory / {name}'] = ratio and ratio.memory
        rows.append(row)
    return rows


def baseline_names(baselines: Sequence[Baseline]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(baseline.name for baseline in baselines))


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """Writes rows that have the same columns."""
    with file.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _format(value: float | None, digits: int) -> str:
    """So many significant digits, no exponent."""
    if value is None:
        return ''
    text = f'{value:#.{digits}g}'
    return f'{float(text):.0f}' if 'e' in text else text.rstrip('.')


def _cells(
    rows: Sequence[Row], baselines: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table; columns that say nothing are left out."""
    columns = {
        'subject': [row['subject'] for row in rows],
        'M weights': [
            _format((row['parameters'] or 0) / 1e6 or None, 4) for row in rows
        ],
        'seconds': [_format(row['median_s'], 3) for row in rows],
        'min': [_format(row['min_s'], 3) for row in rows],
        'max': [_format(row['max_s'], 3) for row in rows],
    }
    for name in baselines:
        column = f'time / {name}'
        columns[column] = [_format(row[column], 3) for row in rows]
    columns['memory MB'] = [_format(r['peak_memory_mb'], 4) for r in rows]
    for name in baselines:
        column = f'memory / {name}'
        columns[column] = [_format(row[column], 3) for row in rows]
    columns['remark'] = [_remark(row) for row in rows]
    said = {head: cells for head, cells in columns.items() if any(cells)}
    return list(said), [list(line) for line in zip(*said.values())]


def _remark(row: Row) -> str:
    if row['status'] != 'ok':
        return row['status']
    source = row['memory_source']
    return f'memory {source}' if source.startswith('not measured') else ''


def screen_table(rows: Sequence[Row], baselines: Sequence[str]) -> Table:
    """A table of the rows of one setting, for the terminal."""
    heads, lines = _cells(rows, baselines)
    table = Table(
        title=rows[0]['setting'],
        title_justify='left',
        box=None,
        pad_edge=False,
    )
    for head in heads:
        table.add_column(
            head.replace(' ', '\n').replace('\n/', ' /'),
            justify='left' if head in ('subject', 'remark') else 'right',
            no_wrap=True,
        )
    for line in lines:
        table.add_row(*line)
    return table


def conditions_line(row: Row) -> str:
    """What all rows have in common, in a sentence."""
    threads = 'thread' if str(row['threads']) == '1' else 'threads'
    return (
        f'{row["machine"]} (load before {row["load"]}), '
        f'{row["threads"]} {threads}, {row["device"]}, '
        f'{row["dtype"]}, torch {row["torch"]}, mmdat {row["mmdat"]}, '
        f'{row["date"]}'
    )


def markdown(
    rows: Sequence[Row], baselines: Sequence[str], command: str
) -> str:
    """All settings as Markdown, with conditions and command."""
    parts = [
        f'*Measured here* with\n\n```bash\n{command}\n```\n\non '
        f'{conditions_line(rows[0])}. {NOTE}'
    ]
    for setting, group in groupby(rows, lambda row: row['setting']):
        heads, lines = _cells(list(group), baselines)
        rule = ['---' if h in ('subject', 'remark') else '--:' for h in heads]
        table = '\n'.join(
            f'| {" | ".join(line)} |' for line in (heads, rule, *lines)
        )
        parts.append(f'**{setting}**\n\n{table}')
    return '\n\n'.join(parts) + '\n'


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
