# Copyright (c) mmdat contributors. Apache-2.0 licence.
# ruff: noqa: E402
"""Shows pictures to a detector, segmentor or classifier.

Prints what the model sees and draws it. The checkpoint may be one of your own
or one that the authors released.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while packages are imported ends without their traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import warnings
from pathlib import Path

from mmengine.logging import MMLogger
from PIL import Image

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import OptionsAction
from mmdat.engine.configuration import load_config
from mmdat.engine.demo_model import use_demo_files
from mmdat.engine.inference import (
    check_picture,
    choose_device,
    find_pictures,
    look_at_each,
)
from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.utils.output_file import check_output_file

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'picture',
        nargs='?',
        help='picture to look at, or a folder of them, or a pattern in '
        'quotes, such as "photos/*.jpg"; default: a picture in demo/',
    )
    parser.add_argument(
        'config',
        nargs='?',
        help='config of the model; default: the one in demo/',
    )
    parser.add_argument(
        'checkpoint', nargs='?', help='weights of the model, of a config'
    )
    parser.add_argument(
        '--out',
        help='drawing to write, by default outputs/PICTURE_CONFIG.png; for '
        'several pictures a folder, by default outputs',
    )
    parser.add_argument(
        '--device', help='such as cpu or cuda:0; a GPU by default, if any'
    )
    parser.add_argument(
        '--score',
        type=float,
        default=0.3,
        help='lowest score of a detected object (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def drawing_of(picture: str, args: argparse.Namespace, several: bool) -> Path:
    """The file that the drawing of a picture goes to."""
    name = f'{Path(picture).stem}_{Path(args.config).stem}.png'
    if several:
        return Path(args.out or 'outputs') / name
    return Path(args.out or Path('outputs') / name)


def main() -> None:
    """Looks, prints and draws."""
    args = parse_args()
    # What the packages say about themselves is of no interest here.
    warnings.simplefilter('ignore')
    MMLogger.get_current_instance().setLevel('ERROR')
    use_safe_loading()
    with one_sentence_errors('image_demo'):
        use_demo_files(args, ROOT, 'picture')
        if args.checkpoint is None:
            raise UserError(
                f'{args.config} needs weights, and none were named; add a '
                f'checkpoint after it.'
            )
        pictures = find_pictures(args.picture)
        several = len(pictures) > 1 or Path(args.picture).is_dir()
        if several and args.out and Path(args.out).suffix:
            raise UserError(
                f'--out must name a folder for several pictures; got '
                f'{args.out} for {len(pictures)}.'
            )
        if not 0 <= args.score <= 1:
            raise UserError(
                f'--score must be 0 to 1, as scores are; got {args.score}.'
            )
        for picture in pictures:
            check_picture(picture)
            out = drawing_of(picture, args, several)
            check_output_file(out)
            if out.suffix.lower() not in Image.registered_extensions():
                raise UserError(
                    f'--out must name a picture, such as out.png; got {out}.'
                )
        device = choose_device(args.device)
        cfg = load_config(args.config, args.cfg_options)
        sights = look_at_each(
            cfg, args.checkpoint, pictures, device, args.score
        )
        for picture, sight in zip(pictures, sights):
            out = drawing_of(picture, args, several)
            out.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sight.drawing).save(out)
            if several:
                print(f'{picture}:')
            for line in sight.lines:
                print(line)
            print(f'The drawing is {out.resolve()}')


if __name__ == '__main__':
    main()
