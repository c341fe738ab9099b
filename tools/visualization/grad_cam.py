# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Draws a Grad-CAM: where a model finds what speaks for a class.

Works with classifiers, segmentors and detectors, and with layers inside DAT,
whose channels come last. Without arguments it takes what is in demo/.
"""

import argparse
from pathlib import Path

from mmdat.checkpoints.loading import use_safe_loading
from mmdat.engine.arguments import OptionsAction
from mmdat.engine.configuration import load_config
from mmdat.engine.demo_model import use_demo_files
from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.utils.output_file import check_output_file
from mmdat.visualization.figures import SUFFIXES, save
from mmdat.visualization.grad_cam import cam_figure, grad_cam
from mmdat.visualization.picture import load_model, load_picture

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
        'config', nargs='?', help='config; without one the model in demo/'
    )
    parser.add_argument('checkpoint', nargs='?', help='its weights')
    parser.add_argument(
        '--target',
        help='name or number of the class; by default the likeliest, or that '
        'of the most certain object',
    )
    parser.add_argument(
        '--layer',
        help='layer as in model.named_modules(), such as '
        'backbone.stages.2.blocks.1.norm2; by default the last output of the '
        'backbone',
    )
    parser.add_argument(
        '--out',
        default='grad_cam.png',
        help='file to write; its suffix is its format',
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
    with one_sentence_errors('grad_cam'):
        check_output_file(args.out)
        if Path(args.out).suffix.lower() not in SUFFIXES:
            raise UserError(
                f'--out must end in one of {", ".join(SUFFIXES)}; got '
                f'{args.out}.'
            )
        use_demo_files(args, ROOT)
        model = load_model(
            load_config(args.config, args.cfg_options), args.checkpoint
        )
        picture = load_picture(model, args.image)
        cam = grad_cam(model, picture, args.target, args.layer)
        figure = cam_figure(picture.image, cam, model.weights.warning)
        out = save(figure, args.out)
    print(f'Grad-CAM of class {cam.name} at {cam.layer}: {out.resolve()}')


if __name__ == '__main__':
    main()
