# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Shows a picture to a detector, segmentor or classifier.

Prints what the model sees and draws it. The checkpoint may be one of your own
or one that the authors released.
"""

import argparse
import warnings
from pathlib import Path

from mmengine.config import DictAction
from mmengine.logging import MMLogger
from PIL import Image

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.configuration import load_config
from mmdat.engine.inference import check_picture, choose_device, look
from mmdat.utils.errors import one_sentence_errors


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('picture', help='picture to look at')
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='weights of the model')
    parser.add_argument(
        '--out',
        help='drawing to write, by default outputs/PICTURE_CONFIG.png',
    )
    parser.add_argument(
        '--device', help='such as cpu or cuda:0; a GPU by default, if any'
    )
    parser.add_argument(
        '--score',
        type=float,
        default=0.3,
        help='lowest score of a detected object',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def main() -> None:
    """Looks, prints and draws."""
    args = parse_args()
    # What the packages say about themselves is of no interest here.
    warnings.simplefilter('ignore')
    MMLogger.get_current_instance().setLevel('ERROR')
    use_safe_loading()
    with one_sentence_errors('image_demo'):
        check_picture(args.picture)
        device = choose_device(args.device)
        cfg = load_config(args.config, args.cfg_options)
        sight = look(cfg, args.checkpoint, args.picture, device, args.score)
    name = f'{Path(args.picture).stem}_{Path(args.config).stem}.png'
    out = Path(args.out or Path('outputs') / name)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sight.drawing).save(out)
    for line in sight.lines:
        print(line)
    print(f'The drawing is {out.resolve()}')


if __name__ == '__main__':
    main()
