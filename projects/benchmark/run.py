# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Measures time and peak memory of backbones, side by side.

Without arguments: DAT-T and DAT-T++ beside Swin-T, PVTv2-B2 and ResNet-50 (of
mmdet, where it is installed), inference at three sizes, in a few minutes on a
laptop. With --ops the attentions alone, with --preset the tables of the
documentation.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import cases
import report
import torch
import worker
from rich.console import Console
from rich.measure import Measurement as Width
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from subjects import check_backbone, load_factory, why_missing

from mmdat.ops.dispatch import BACKEND_NAMES
from mmdat.utils.errors import UserError, one_sentence_errors

BACKBONES = ['dat_t', 'dat_pp_t', 'swin_t', 'pvt_v2_b2', 'resnet50']
SHAPES = ['224x224', '512x512', '800x1344']
BASELINES = ['swin_t', 'sdpa', '@reference']


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group(
        'what is measured', 'with --preset these choose from it'
    )
    what.add_argument(
        '--preset',
        choices=cases.PRESETS,
        help='cpu: the table of the documentation. gpu: training and '
        'inference in bf16 against the plain PyTorch version of the same '
        'maths, on cuda',
    )
    what.add_argument(
        '--ops',
        nargs='*',
        metavar='KIND',
        help='attentions alone instead of backbones: '
        f'{", ".join(cases.OPS)}; all if none is named',
    )
    what.add_argument(
        '--backbones', nargs='+', help=f'default: {" ".join(BACKBONES)}'
    )
    what.add_argument(
        '--shapes',
        nargs='+',
        metavar='HxW',
        help=f'sizes of the image; default: {" ".join(SHAPES)}',
    )
    what.add_argument(
        '--batch', nargs='+', type=int, help='images at a time; default: 1'
    )
    what.add_argument(
        '--modes',
        nargs='+',
        choices=cases.MODES,
        help='train is forward and backward; default: inference, and both '
        'for --ops',
    )
    what.add_argument(
        '--backends',
        nargs='+',
        metavar='BACKEND',
        help=f'auto, {", ".join(BACKEND_NAMES)}; default: auto, and auto '
        f'reference for --ops',
    )
    what.add_argument(
        '--foreign',
        nargs='+',
        default=[],
        metavar='NAME=FILE.py:FUNCTION',
        help='other backbones: a function without arguments that returns an '
        'nn.Module from images to feature maps',
    )
    what.add_argument(
        '--baseline',
        nargs='+',
        help='subject to compare with: NAME; @BACKEND, the same backbone '
        'with that backend, @auto with the one chosen; or OF=NAME, for one '
        f'backbone only; default: {" ".join(BASELINES)}, with --compile @auto',
    )
    how = parser.add_argument_group('how')
    how.add_argument('--device', help='default: cpu, cuda for --preset gpu')
    how.add_argument(
        '--amp',
        choices=['bf16', 'fp16', 'off'],
        help='autocast; default: off, bf16 for --preset gpu',
    )
    how.add_argument(
        '--compile',
        action='store_true',
        help='measure everything also through torch.compile',
    )
    how.add_argument('--threads', type=int, help='threads on the CPU')
    how.add_argument(
        '--rounds', type=int, default=5, help='timed rounds; default: 5'
    )
    how.add_argument(
        '--timeout',
        type=float,
        default=900,
        help='seconds after which a round of a case is given up; default: 900',
    )
    how.add_argument(
        '--memory-limit',
        type=float,
        metavar='GB',
        help='what a case may take beyond its weights on the CPU; default: '
        '90 percent of what is available',
    )
    out = parser.add_argument_group('results')
    out.add_argument(
        '--out',
        default='work_dirs/benchmark',
        help='folder of benchmark.csv, benchmark.png and workers.log; '
        'default: %(default)s',
    )
    out.add_argument('--markdown', metavar='FILE', help='tables in Markdown')
    return parser.parse_args()


def read_shape(text: str) -> tuple[int, int]:
    """(H, W) of ``HxW``."""
    sides = text.lower().split('x')
    if len(sides) != 2 or not all(s.isdecimal() and int(s) for s in sides):
        raise UserError(
            f'--shapes takes sizes as HEIGHTxWIDTH in pixels, such as '
            f'800x1344; got {text!r}.'
        )
    return int(sides[0]), int(sides[1])


def read_foreign(text: str) -> cases.Subject:
    """A subject of ``NAME=file.py:function``, tried here before all else."""
    name, _, place = text.partition('=')
    subject = cases.Subject(name, factory=place)
    load_factory(place)
    return subject


def read_conditions(args: argparse.Namespace) -> cases.Conditions:
    """The conditions the command line asks for."""
    for name in ('threads', 'rounds', 'timeout', 'memory_limit'):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(
                f'--{name.replace("_", "-")} must be positive; got {value}.'
            )
    gpu = args.preset == 'gpu'
    device = args.device or ('cuda' if gpu else 'cpu')
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise UserError(
            f'PyTorch sees no CUDA device here but {device} was requested; '
            f'use --device cpu, or a machine with a GPU and PyTorch for it.'
        )
    amp = args.amp or ('bf16' if gpu else 'off')
    limit = worker.available_memory()
    if args.memory_limit is not None:
        limit = args.memory_limit * 1e9
    elif limit is not None:
        limit = 0.9 * limit
    return cases.Conditions(
        device=device,
        amp=None if amp == 'off' else amp,
        threads=args.threads,
        memory_limit=None if limit is None else int(limit),
        load=report.load_average(),
    )


def read_plan(
    args: argparse.Namespace, baselines: list[cases.Baseline]
) -> list[cases.Group]:
    """The groups the command line asks for."""
    for name in args.backbones or []:
        check_backbone(name)
    for name in args.ops or []:
        if name not in cases.OPS:
            raise UserError(
                f'An attention must be one of {", ".join(cases.OPS)}; got '
                f'{name!r}.'
            )
    for backend in args.backends or []:
        if backend not in ('auto', *BACKEND_NAMES):
            raise UserError(
                f'--backends takes auto, {", ".join(BACKEND_NAMES)}; got '
                f'{backend!r}.'
            )
    backends = args.backends and [
        None if backend == 'auto' else backend for backend in args.backends
    ]
    shapes = args.shapes and [read_shape(text) for text in args.shapes]
    foreign = [read_foreign(text) for text in args.foreign]
    if args.preset:
        names = args.backbones
        if args.ops is not None:
            ops = [cases.OPS[kind] for kind in args.ops or cases.OPS]
            names = [*(names or []), *ops, 'sdpa']
        groups = cases.keep(
            cases.preset(args.preset), names, shapes, args.batch, args.modes
        )
    elif args.ops is not None:
        for name in ('backbones', 'shapes'):
            if getattr(args, name):
                raise UserError(
                    f'--ops has sizes of its own and no backbones; leave out '
                    f'--{name}, or --ops.'
                )
        options = dict(modes=args.modes, backends=backends)
        options = {k: v for k, v in options.items() if v}
        batch = (args.batch or [1])[0]
        groups = cases.attention_groups(
            args.ops or tuple(cases.OPS), batch, **options
        )
    else:
        groups = cases.backbone_groups(
            args.backbones or BACKBONES,
            shapes or [read_shape(text) for text in SHAPES],
            args.batch or [1],
            args.modes or ['inference'],
            backends or [None],
        )
    groups = cases.add_foreign(groups, foreign, baselines)
    return cases.also_compiled(groups) if args.compile else groups


def run(
    groups: Sequence[cases.Group],
    conditions: cases.Conditions,
    baselines: Sequence[cases.Baseline],
    rules: worker.Rules,
    console: Console,
) -> list[report.Row]:
    """Measures all groups.

    After each the file ``benchmark.csv`` beside the log is written anew, so
    that a run that is interrupted leaves what it had. Subjects that are not
    to be had in this environment are reported and left out.

    Args:
        groups: What to measure.
        conditions: Under which conditions.
        baselines: The subjects to compare with.
        rules: How a session goes.
        console: Where progress and tables are shown.

    Returns:
        A row for each subject of each group.
    """
    rows: list[report.Row] = []
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
            present, missing = [], []
            for subject in group.subjects:
                case = cases.Case(subject, group.setting, conditions)
                if (reason := why_missing(subject)) is None:
                    present.append(case)
                else:
                    status = f'skipped: {reason}'
                    missing.append(cases.Measurement(case, status))
            progress.advance(task, turns * len(missing))
            measured = worker.measure(present, rules, tick) + missing
            added = report.make_rows(measured, conditions, baselines)
            rows += added
            report.write_csv(rows, rules.log.parent / 'benchmark.csv')
            names = report.baseline_names(baselines)
            _show(report.screen_table(added, names), console)
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


def main() -> None:
    """Plans, measures, writes."""
    args = parse_args()
    console = Console(highlight=False, soft_wrap=True)
    with one_sentence_errors('benchmark'):
        conditions = read_conditions(args)
        usual = ['@auto'] if args.compile else BASELINES
        baselines = [cases.parse_baseline(b) for b in args.baseline or usual]
        groups = read_plan(args, baselines)
        if not groups:
            raise UserError(
                f'Nothing of --preset {args.preset} is left to measure; name '
                f'fewer conditions, or leave --preset out.'
            )
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        if (busy := report.warning(conditions)) is not None:
            console.print(busy, style='yellow')
        rules = worker.Rules(args.rounds, args.timeout, out / 'workers.log')
        try:
            rows = run(groups, conditions, baselines, rules, console)
        except KeyboardInterrupt:
            console.print(f'Interrupted; finished tables are in {out}.')
            sys.exit(130)
    console.print(f'{report.conditions_line(rows[0])}\n{report.NOTE}')
    files = [out / 'benchmark.csv']
    if report.plot(rows, out / 'benchmark.png'):
        files.append(out / 'benchmark.png')
    if args.markdown:
        command = shlex.join(['python', *sys.argv])
        text = report.markdown(rows, report.baseline_names(baselines), command)
        Path(args.markdown).write_text(text, encoding='utf-8')
        files.append(Path(args.markdown))
    console.print('Written: ' + ', '.join(map(str, files)))


if __name__ == '__main__':
    main()
