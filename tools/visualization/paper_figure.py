# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Draws the figure of the DAT papers: a query's keys, by picture and stage.

Without a query the middle of the object that a detector is most certain of is
asked about. Without arguments it uses the files in demo/.
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
from mmdat.visualization.figures import SUFFIXES, save
from mmdat.visualization.findings import Findings, find
from mmdat.visualization.paper import Row, choose_query, paper_figure
from mmdat.visualization.picture import load_model, load_picture, record
from mmdat.visualization.recorder import select_blocks

ROOT = Path(__file__).resolve().parents[2]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('images', nargs='*', help='image files, a row each')
    parser.add_argument(
        '--config', help='config; without one the model in demo/'
    )
    parser.add_argument('--checkpoint', help='its weights')
    parser.add_argument(
        '--query',
        type=float,
        nargs=2,
        action='append',
        default=[],
        metavar=('X', 'Y'),
        help='query pixel, one for all pictures or one for each',
    )
    parser.add_argument(
        '--stage',
        type=int,
        nargs='+',
        help='stages, a column each; default: all with deformable attention',
    )
    parser.add_argument(
        '--out',
        default='figure.pdf',
        help='file to write; its suffix is its format',
    )
    parser.add_argument(
        '--dpi', type=int, default=200, help='pixels per inch of the file'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def main() -> None:
    """Draws and says where."""
    args = parse_args()
    use_safe_loading()
    with one_sentence_errors('paper_figure'):
        check_output_file(args.out)
        if args.dpi < 1:
            raise UserError(f'--dpi must be at least 1; got {args.dpi}.')
        if Path(args.out).suffix.lower() not in SUFFIXES:
            raise UserError(
                f'--out must end in one of {", ".join(SUFFIXES)}; got '
                f'{args.out}.'
            )
        use_demo_files(args, ROOT, None)
        if not args.images:
            args.images = sorted((ROOT / 'demo/pictures').glob('*.jpg'))
        if len(args.query) not in (0, 1, len(args.images)):
            raise UserError(
                f'There must be one --query for all pictures or one for each '
                f'of {len(args.images)}; got {len(args.query)}.'
            )
        model = load_model(
            load_config(args.config, args.cfg_options), args.checkpoint
        )
        stages = args.stage or dict.fromkeys(
            stage for stage, _ in select_blocks(model)
        )
        blocks = [select_blocks(model, stage)[-1] for stage in stages]
        rows = []
        for i, image in enumerate(track(args.images, 'Pictures')):
            picture = load_picture(model, image)
            if args.query:
                query = args.query[min(i, len(args.query) - 1)]
            else:
                found = Findings()
                if model.weights.whole:
                    found = find(model, picture)
                query = choose_query(picture, found)
            try:
                records = record(
                    model, picture, blocks, [query], received=False
                )
            except ValueError as error:
                raise UserError(f'{image}: {error}') from error
            rows.append(Row(picture.image, list(records.values())))
        out = save(
            paper_figure(rows, model.weights.warning), args.out, args.dpi
        )
    print(f'{len(rows)} picture(s) at {len(blocks)} stage(s): {out.resolve()}')


if __name__ == '__main__':
    main()
