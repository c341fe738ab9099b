# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Rows as tables, on the screen and in Markdown."""

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from .rows import Row, memory_column, time_column

NOTE = (
    'Times are medians over the rounds, in which the processes of a table '
    'take turns; in its turn a process whose first pass took less than two '
    'seconds makes one that is not timed first. Ratios are medians of the '
    'ratios within a round, below 1 is faster. Memory is the increase at the '
    'peak of the first pass over what the process had with weights and input '
    'in place, in MB of 10^6 bytes; in training it includes the gradients of '
    'the weights.'
)


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
        column = time_column(name)
        columns[column] = [_format(row[column], 3) for row in rows]
    columns['memory MB'] = [_format(r['peak_memory_mb'], 4) for r in rows]
    for name in baselines:
        column = memory_column(name)
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
    return (
        f'{row["machine"]} (load before {row["load"]}), '
        f'{row["threads"]} threads, {row["device"]}, '
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
