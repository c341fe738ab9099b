# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Makes a GIF or MP4 of how the points of a DAT move while it trains.

Each frame is a checkpoint. Stages, blocks and groups count from 0.
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
from mmdat.visualization.movie import (
    find_checkpoints,
    make_movie,
    writer_for,
)
from mmdat.visualization.picture import (
    INIT,
    load_model,
    load_picture,
    load_weights,
    record,
)
from mmdat.visualization.recorder import select_blocks

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
        help='config that was trained; without one the model in demo/',
    )
    parser.add_argument(
        'checkpoints',
        nargs='*',
        help='work dir, whose epoch_N.pth or iter_N.pth are taken in order, '
        'or checkpoint files in the order to show them; init stands for the '
        'weights before training',
    )
    parser.add_argument(
        '--stage',
        type=int,
        help='stage; default: the last deformable block of every stage',
    )
    parser.add_argument('--block', type=int, help='block in the stage')
    parser.add_argument('--group', type=int, help='group; by default all')
    parser.add_argument(
        '--fps', type=float, default=2, help='checkpoints per second'
    )
    parser.add_argument(
        '--out', default='points.gif', help='.gif or .mp4 file to write'
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
    with one_sentence_errors('vis_training'):
        check_output_file(args.out)
        writer_for(args.out, args.fps)
        args.checkpoint = None
        if use_demo_files(args, ROOT):
            args.checkpoints = [INIT, args.checkpoint]
        elif not args.checkpoints:
            raise UserError(
                'A movie needs checkpoints, and none were named; name the '
                'work dir of the training after the config.'
            )
        files = find_checkpoints(args.checkpoints)
        cfg = load_config(args.config, args.cfg_options)
        model = load_model(cfg, INIT)
        picture = load_picture(model, args.image)
        blocks = select_blocks(model, args.stage, args.block)
        blocks = list({stage: (stage, i) for stage, i in blocks}.values())
        frames = []
        for file in track(files, 'Checkpoints'):
            load_weights(model, str(file))
            records = list(record(model, picture, blocks).values())
            groups = min(one.groups for one in records)
            if args.group is not None and not 0 <= args.group < groups:
                raise UserError(
                    f'--group must be in 0 to {groups - 1}; got {args.group}.'
                )
            label = 'before training' if str(file) == INIT else file.stem
            frames.append((label, records))
        out = make_movie(
            picture.image,
            frames,
            args.out,
            args.group,
            args.fps,
            lambda frames: track(frames, 'Frames'),
        )
    print(f'{len(frames)} frames are in {out.resolve()}')


if __name__ == '__main__':
    main()
