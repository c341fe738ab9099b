# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Draws losses and metrics of trainings, several runs beside each other.

It reads the scalars.json that every training writes to its work dir.
"""

import argparse
from pathlib import Path

from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.visualization.curves import (
    choose_curves,
    curves_figure,
    name_apart,
    read_run,
)
from mmdat.visualization.figures import SUFFIXES, save


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('work_dirs', nargs='+', help='work dirs of trainings')
    parser.add_argument(
        '--keys',
        nargs='+',
        help='scalars to draw, or beginnings of their names; by default the '
        'loss and the validation metrics',
    )
    parser.add_argument(
        '--smooth',
        type=float,
        default=0.0,
        help='moving average, from 0, none, to below 1',
    )
    parser.add_argument(
        '--log-x', action='store_true', help='iterations on a log axis'
    )
    parser.add_argument(
        '--log-y', action='store_true', help='values on a log axis'
    )
    parser.add_argument(
        '--out',
        default='curves.png',
        help='file to write; its suffix is its format',
    )
    return parser.parse_args()


def main() -> None:
    """Draws and says where."""
    args = parse_args()
    with one_sentence_errors('plot_curves'):
        if Path(args.out).suffix.lower() not in SUFFIXES:
            raise UserError(
                f'--out must end in one of {", ".join(SUFFIXES)}; got '
                f'{args.out}.'
            )
        if not 0 <= args.smooth < 1:
            raise UserError(
                f'--smooth must be from 0 to below 1; got {args.smooth}.'
            )
        runs = name_apart(
            [read_run(work_dir) for work_dir in args.work_dirs],
            args.work_dirs,
        )
        names = choose_curves(runs, args.keys)
        figure = curves_figure(
            runs, names, args.smooth, args.log_x, args.log_y
        )
        out = save(figure, args.out)
    print(f'{len(names)} curve(s) of {len(runs)} run(s): {out.resolve()}')


if __name__ == '__main__':
    main()
