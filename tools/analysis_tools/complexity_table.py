# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares parameters and multiply-adds with those the authors report.

It needs no data and no weights, and takes about five minutes for all models.
"""

import argparse
import re
from pathlib import Path

from mmengine.logging import MMLogger
from tqdm import tqdm

from mmdat.analysis.published import TABLES
from mmdat.analysis.table import HEAD, line, measure
from mmdat.engine.configuration import load_config
from mmdat.utils.errors import UserError, one_sentence_errors

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
BEGIN, END = '<!-- tables -->', '<!-- end of tables -->'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--only', default='', help='only configs with this text in the name'
    )
    parser.add_argument(
        '--write',
        metavar='FILE',
        help=f'replace the tables between {BEGIN} and {END} in this file',
    )
    return parser.parse_args()


def make_tables(only: str) -> str:
    """Returns all tables as Markdown."""
    chosen = {
        title: [row for row in rows if only in row.config]
        for title, rows in TABLES.items()
    }
    number = sum(map(len, chosen.values()))
    if not number:
        raise UserError(
            f'--only must be part of the name of a published config; no name '
            f'contains {only!r}.'
        )
    parts = []
    with tqdm(total=number, unit='model') as progress:
        for title, rows in chosen.items():
            if not rows:
                continue
            lines = []
            for row in rows:
                cfg = load_config(str(CONFIGS / f'{row.config}.py'))
                lines.append(line(row, measure(cfg)))
                progress.update()
            parts.append(f'### {title}\n\n{HEAD}' + '\n'.join(lines))
    return '\n\n'.join(parts)


def write(path: Path, tables: str) -> None:
    """Writes the tables between the two marks of a file."""
    text = path.read_text() if path.is_file() else ''
    pattern = f'{re.escape(BEGIN)}.*{re.escape(END)}'
    if not re.search(pattern, text, re.DOTALL):
        raise UserError(
            f'--write needs a file with the lines {BEGIN} and {END}; {path} '
            f'has none.'
        )
    new = f'{BEGIN}\n\n{tables}\n\n{END}'
    path.write_text(re.sub(pattern, lambda _: new, text, flags=re.DOTALL))


def main() -> None:
    """Prints or writes the tables."""
    args = parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    with one_sentence_errors('complexity_table'):
        tables = make_tables(args.only)
        if args.write is not None:
            write(Path(args.write), tables)
        else:
            print(tables)


if __name__ == '__main__':
    main()
