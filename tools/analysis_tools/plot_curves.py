# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Draws losses and metrics of one or more trainings.

It reads the scalars.json that each training writes to its work directory.
"""

import argparse
from pathlib import Path

from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.utils.output_file import check_output_file
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
    parser.add_argument(
        'work_dirs', nargs='+', help='work directories of trainings'
    )
    parser.add_argument(
        '--keys',
        nargs='+',
        help='names of scalars, or how their names begin; default: the loss '
        'and the validation metrics',
    )
    parser.add_argument(
        '--smooth',
        type=float,
        default=0.0,
        help='strength of the moving average, from 0 (none) to below 1',
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
        help='file to write; its suffix sets the format',
    )
    return parser.parse_args()


def main() -> None:
    """Draws the curves and prints the path."""
    args = parse_args()
    with one_sentence_errors('plot_curves'):
        check_output_file(args.out)
        if Path(args.out).suffix.lower() not in SUFFIXES:
            raise UserError(
                f'--out must end in one of {", ".join(SUFFIXES)}; got '
                f'{args.out}.'
            )
        if not 0 <= args.smooth < 1:
            raise UserError(
                f'--smooth must be at least 0 and below 1; got {args.smooth}.'
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
    print(f'Curves: {len(names)}, runs: {len(runs)}; {out.resolve()}')


if __name__ == '__main__':
    main()
