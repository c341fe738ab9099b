# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Draws where a DAT reads its keys in an image, and what queries attend to.

Stages, blocks, groups and heads count from 0, as in model.stages[2].blocks[1].
Pixels are those of the image file, x to the right and y down.
"""

import argparse
from pathlib import Path

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import OptionsAction
from mmdat.engine.configuration import load_config
from mmdat.engine.demo_model import use_demo_files
from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.utils.output_file import check_output_file
from mmdat.visualization.figures import (
    SUFFIXES,
    attention_figure,
    points_figure,
    save,
)
from mmdat.visualization.picture import load_model, load_picture, record
from mmdat.visualization.recorder import (
    BlockRecord,
    check_queries,
    select_blocks,
)

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
        'checkpoint',
        nargs='?',
        help='checkpoint, or a file the authors released; without one the '
        'weights are those of init_cfg, or random',
    )
    parser.add_argument(
        '--stage',
        type=int,
        help='stage; default: the last with deformable attention',
    )
    parser.add_argument(
        '--block',
        type=int,
        help='block in it; default: the last deformable one',
    )
    parser.add_argument(
        '--group',
        type=int,
        help='group of heads that share points; by default all',
    )
    parser.add_argument(
        '--query',
        type=float,
        nargs=2,
        action='append',
        metavar=('X', 'Y'),
        help='pixel whose attention to draw; may be repeated',
    )
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument(
        '--head',
        type=int,
        nargs='*',
        help='heads to draw the attention of, one panel each; all of them if '
        'no number follows',
    )
    heads.add_argument(
        '--average',
        action='store_true',
        help='draw the attention averaged over the heads (the default)',
    )
    parser.add_argument(
        '--grid',
        action='store_true',
        help='one picture of all deformable blocks, or those of --stage',
    )
    parser.add_argument(
        '--out',
        default='points.png',
        help='file to write; its suffix is its format',
    )
    parser.add_argument(
        '--dpi', type=int, default=150, help='pixels per inch of the file'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def check_args(args: argparse.Namespace) -> None:
    """Raises UserError for arguments that do not go together."""
    check_output_file(args.out)
    if args.dpi < 1:
        raise UserError(f'--dpi must be at least 1; got {args.dpi}.')
    if Path(args.out).suffix.lower() not in SUFFIXES:
        raise UserError(
            f'--out must end in one of {", ".join(SUFFIXES)}; got {args.out}.'
        )
    if args.head is not None and not args.query:
        raise UserError(
            '--head says whose attention to draw, for which --query X Y must '
            'say of which pixel; add one.'
        )
    if args.query and args.group is not None:
        raise UserError(
            '--group is for pictures of points; with --query choose by --head.'
        )
    if args.grid and args.block is not None:
        raise UserError(
            '--grid draws all blocks; leave out --block, or --grid.'
        )


def check_numbers(
    name: str, numbers: list[int], records: list[BlockRecord], count: str
) -> None:
    """Raises UserError unless all blocks have such heads or groups."""
    least = min(records, key=lambda one: getattr(one, count))
    for number in numbers:
        if not 0 <= number < getattr(least, count):
            raise UserError(
                f'--{name} must be in 0 to {getattr(least, count) - 1} in '
                f'block {least.block} of stage {least.stage}; got {number}.'
            )


def main() -> None:
    """Draws and says where."""
    args = parse_args()
    use_safe_loading()
    with one_sentence_errors('vis_points'):
        check_args(args)
        use_demo_files(args, ROOT)
        cfg = load_config(args.config, args.cfg_options)
        model = load_model(cfg, args.checkpoint)
        picture = load_picture(model, args.image)
        blocks = select_blocks(model, args.stage, args.block)
        check_queries(
            args.query or [], picture.frame, picture.inputs.shape[2:]
        )
        if not args.grid:
            blocks = blocks[-1:]
        records = list(
            record(
                model,
                picture,
                blocks,
                queries_xy=args.query or [],
                received=not args.query,
            ).values()
        )
        if args.query:
            heads = args.head
            if heads == []:
                heads = list(range(min(one.heads for one in records)))
            check_numbers('head', heads or [], records, 'heads')
            figure = attention_figure(
                picture.image, records, heads, model.weights.warning
            )
        else:
            groups = [] if args.group is None else [args.group]
            check_numbers('group', groups, records, 'groups')
            figure = points_figure(
                picture.image, records, args.group, model.weights.warning
            )
        out = save(figure, args.out, args.dpi)
    what = 'Attention' if args.query else 'Points'
    verb = 'is' if args.query else 'are'
    blocks = f'{len(records)} block{"s" * (len(records) != 1)}'
    print(f'{what} of {blocks} {verb} in {out.resolve()}')


if __name__ == '__main__':
    main()
