# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Measurements as rows of a CSV file, conditions in every row."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .cases import Conditions, Measurement
from .conditions import describe
from .ratios import Baseline, compare

Row = dict[str, Any]


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
            row[time_column(name)] = ratio and ratio.time
            row[memory_column(name)] = ratio and ratio.memory
        rows.append(row)
    return rows


def baseline_names(baselines: Sequence[Baseline]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(baseline.name for baseline in baselines))


def time_column(baseline: str) -> str:
    """Column of the paired ratio of times."""
    return f'time / {baseline}'


def memory_column(baseline: str) -> str:
    """Column of the ratio of peaks."""
    return f'memory / {baseline}'


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """Writes rows that have the same columns."""
    with file.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
