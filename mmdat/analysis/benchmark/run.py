# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Measures group after group, and shows each as soon as it is there."""

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement as Width
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from .backbones import why_missing
from .cases import Case, Conditions, Measurement
from .plan import Group
from .ratios import Baseline
from .rows import Row, baseline_names, make_rows, write_csv
from .session import Rules, measure
from .tables import screen_table


def run(
    groups: Sequence[Group],
    conditions: Conditions,
    baselines: Sequence[Baseline],
    rules: Rules,
    console: Console,
) -> list[Row]:
    """Measures all groups.

    After each the file ``benchmark.csv`` beside the log is written anew, so
    that a run that is interrupted leaves what it had. Subjects that are not
    to be had in this environment are reported and left out.

    Args:
        groups: What to measure.
        conditions: Under which conditions.
        baselines: Whom to compare with.
        rules: How a session goes.
        console: Where progress and tables are shown.

    Returns:
        A row for each subject of each group.
    """
    rows: list[Row] = []
    turns = rules.rounds + 1
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        total = turns * sum(len(group.subjects) for group in groups)
        task = progress.add_task('', total=total)

        def tick(label: str) -> None:
            progress.update(task, advance=1, description=label)

        for group in groups:
            cases = [
                Case(subject, group.setting, conditions)
                for subject in group.subjects
            ]
            missing = [
                Measurement(case, f'skipped: {reason}')
                for case in cases
                if (reason := why_missing(case.subject)) is not None
            ]
            progress.advance(task, turns * len(missing))
            absent = [measurement.case for measurement in missing]
            present = [case for case in cases if case not in absent]
            measured = measure(present, rules, tick) + missing
            added = make_rows(measured, conditions, baselines)
            rows += added
            write_csv(rows, rules.log.parent / 'benchmark.csv')
            _show(screen_table(added, baseline_names(baselines)), console)
    return rows


def _show(table: Table, console: Console) -> None:
    """Prints all columns: terminals wrap lines, rich would cut them."""
    width = console.width
    options = console.options.update(max_width=1000)
    full = Width.get(console, options, table).maximum
    console.width = max(full, width)
    console.print(table)
    console.print()
    console.width = width
