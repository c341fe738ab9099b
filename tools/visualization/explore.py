# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Makes a page to play with: what every query of a picture attends to.

One HTML file, to be opened in a browser; it needs no server and no network.
Stages and blocks count from 0.
"""

import argparse
from pathlib import Path

from rich.progress import track

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import OptionsAction
from mmdat.engine.configuration import load_config
from mmdat.engine.demo_model import use_demo_files
from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.utils.output_file import check_output_file
from mmdat.visualization import explore
from mmdat.visualization.movie import find_checkpoints

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'image', nargs='?', help='image file; without one the demo picture'
    )
    parser.add_argument(
        'config',
        nargs='?',
        help='detection, segmentation or classification config; without one '
        'the model in demo/',
    )
    parser.add_argument(
        'checkpoints',
        nargs='*',
        metavar='checkpoint',
        help='checkpoint, or several of a training or its work dir for a '
        'slider; init stands for the weights before training; without any '
        'the weights are those of init_cfg, or random',
    )
    parser.add_argument('--stage', type=int, help='stage; by default all')
    parser.add_argument('--block', type=int, help='block; by default all')
    parser.add_argument(
        '--score',
        type=float,
        default=0.3,
        help='lowest score of a detected object',
    )
    parser.add_argument(
        '--megabytes',
        type=float,
        default=5,
        help='largest size of the page; of what does not fit the largest '
        'weights stay',
    )
    parser.add_argument(
        '--out', default='explorer.html', help='.html file to write'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def main() -> None:
    """Makes the page and says where it is."""
    args = parse_args()
    use_safe_loading()
    with one_sentence_errors('explore'):
        check_output_file(args.out)
        if Path(args.out).suffix.lower() not in ('.html', '.htm'):
            raise UserError(f'--out must end in .html; got {args.out}.')
        args.checkpoint = None
        if use_demo_files(args, ROOT):
            args.checkpoints = [args.checkpoint]
        page = explore(
            args.image,
            load_config(args.config, args.cfg_options),
            find_checkpoints(args.checkpoints),
            stage=args.stage,
            block=args.block,
            score=args.score,
            megabytes=args.megabytes,
            progress=lambda items, what: track(items, what),
        )
        out = page.save(args.out)
    size = out.stat().st_size / 1e6
    print(f'The page is {out.resolve()} ({size:.1f} MB); open it in a browser')


if __name__ == '__main__':
    main()
