# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Trains the models of the paper's ablations and compares them.

Interrupt it when you like and run it again: finished runs are kept, the one
that was interrupted goes on from its last checkpoint.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from ablations.children import Children
from ablations.report import markdown, summarise, write
from ablations.running import train
from ablations.studies import SCALES, STUDIES, Variant, variants
from tqdm import tqdm

from mmdat.utils.errors import UserError, one_sentence_errors


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--study', nargs='+', choices=STUDIES, default=list(STUDIES)
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument(
        '--scale',
        choices=[*SCALES, 'paper'],
        default='small',
        help='small: the digits data set on a CPU; in1k (or paper), coco: the '
        "paper's, on ImageNet or COCO",
    )
    parser.add_argument(
        '--work-dir', default='work_dirs/ablations', help='folder of all runs'
    )
    parser.add_argument('--data-root', help='where the data set lies')
    parser.add_argument(
        '--epochs', type=int, help='another number of epochs, small scale only'
    )
    parser.add_argument(
        '--gpus', type=int, default=1, help='processes of a run, one per GPU'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='runs at a time, each with its share of the cores as threads',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='NAME',
        help='only these models of the studies, by their folder names',
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='train nothing, show what is finished of all this',
    )
    args = parser.parse_args()
    args.scale = 'in1k' if args.scale == 'paper' else args.scale
    return args


def chosen(args: argparse.Namespace) -> dict[str, list]:
    """The models of each study that were asked for."""
    studies = {s: variants(s, args.scale) for s in args.study}
    if args.only is None:
        return studies
    names = {v.name for models in studies.values() for v in models}
    unknown = sorted(set(args.only) - names)
    if unknown:
        raise UserError(
            f'--only takes names of models of the studies, '
            f'{", ".join(sorted(names))}; got {", ".join(unknown)}.'
        )
    kept = {
        study: [v for v in models if v.name in args.only]
        for study, models in studies.items()
    }
    return {study: models for study, models in kept.items() if models}


def train_all(
    args: argparse.Namespace, models: dict[str, Variant], root: Path
) -> dict[str, dict[int, Any]]:
    """What came of each model and seed, first seeds first."""
    if args.jobs < 1:
        raise UserError(f'--jobs must be at least 1; got {args.jobs}.')
    threads = max((os.cpu_count() or 1) // args.jobs, 1)
    if args.scale == 'small':
        os.environ.setdefault('OMP_NUM_THREADS', str(threads))
    data_root = args.data_root and f'{Path(args.data_root).resolve()}/'
    children = Children()
    results = {name: dict.fromkeys(args.seeds) for name in models}
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {
            pool.submit(
                train,
                model,
                seed,
                args.scale,
                root / name / f'seed_{seed}',
                children,
                args.epochs,
                data_root,
                args.gpus,
            ): (name, seed)
            for seed in args.seeds
            for name, model in models.items()
        }
        try:
            for run in tqdm(as_completed(runs), total=len(runs), unit='run'):
                name, seed = runs[run]
                results[name][seed] = run.result()
                tqdm.write(f'{name}, seed {seed}: done')
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
            raise
    return results


def finished(
    args: argparse.Namespace, models: dict[str, Variant], root: Path
) -> dict[str, dict[int, Any]]:
    """What has come of each model so far."""
    results = {}
    for name in models:
        files = {s: root / name / f'seed_{s}/result.json' for s in args.seeds}
        results[name] = {
            seed: json.loads(file.read_text())
            for seed, file in files.items()
            if file.exists()
        }
    if not any(results.values()):
        raise UserError(
            f'--report shows finished runs; {root} has none of these models '
            f'and seeds; train them first, without --report.'
        )
    return results


def main() -> None:
    """Trains what is not trained yet, then writes tables and plots."""
    args = parse_args()
    root = Path(args.work_dir).resolve() / args.scale
    with one_sentence_errors('ablations'):
        studies = chosen(args)
        models = {v.name: v for vs in studies.values() for v in vs}
        collect = finished if args.report else train_all
        results = collect(args, models, root)
        for study, members in studies.items():
            members = [v for v in members if results[v.name]]
            if not members:
                continue
            rows = [summarise(v.label, results[v.name]) for v in members]
            paths = write(study, rows, root)
            print(f'\n{study}\n\n{markdown(rows)}')
            print('Written: ' + ', '.join(map(str, paths)))


if __name__ == '__main__':
    main()
