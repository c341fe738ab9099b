# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Exports a trained model to ONNX, torch.export or compiled code.

The command runs the file at three sizes, odd sizes included, and compares it
with PyTorch. It writes no file that does not agree.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from mmdat.analysis.forward import build_model
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.engine.arguments import OptionsAction
from mmdat.engine.configuration import load_config
from mmdat.engine.deployment import FORMATS, PARTS, export
from mmdat.engine.deployment.formats import OPSET
from mmdat.engine.weights import check_fits
from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.utils.output_file import check_output_file


def read_picture(path: str) -> torch.Tensor:
    """Returns a picture (3, H, W), BGR from 0 to 255."""
    content = np.fromfile(path, np.uint8) if Path(path).is_file() else ()
    picture = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    if picture is None:
        raise UserError(f'--picture takes a picture file; got {path}.')
    return torch.from_numpy(picture).permute(2, 0, 1)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='weights of the whole model')
    parser.add_argument(
        '--format',
        choices=list(FORMATS),
        default='onnx',
        help=f'onnx (opset {OPSET}), torch-export (a program of PyTorch) or '
        f'aoti (compiled for this machine); default onnx',
    )
    parser.add_argument(
        '--part',
        choices=PARTS,
        default='whole',
        help='what to export; default whole',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        default=[224],
        metavar='SIDE',
        help='height and width of the example picture, or one number for '
        'both; the file accepts other sizes too, unless --fixed; default 224',
    )
    parser.add_argument(
        '--fixed',
        action='store_true',
        help='accept only the size of --shape and one picture',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='file to write; default work_dirs/CONFIG.SUFFIX',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--picture',
        metavar='FILE',
        help='picture to compare on, resized; whole detectors must find '
        'something in it; default noise',
    )
    return parser.parse_args()


def main() -> None:
    """Exports a file, checks it and prints the differences."""
    args = parse_args()
    if len(args.shape) > 2 or min(args.shape) < 1:
        raise UserError(
            f'--shape takes a height and a width, or one number for both, in '
            f'pixels; got {" ".join(map(str, args.shape))}.'
        )
    if args.out is not None:
        check_output_file(args.out)
    example = None if args.picture is None else read_picture(args.picture)
    cfg = load_config(args.config, args.cfg_options)
    checkpoint = load_checkpoint_file(args.checkpoint, 'cpu')
    model = build_model(cfg)
    check_fits(args.checkpoint, checkpoint, model)
    path = args.out
    if path is None:
        path = Path('work_dirs') / (
            Path(args.config).stem + FORMATS[args.format].suffix
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    done = export(
        model,
        path,
        args.format,
        args.part,
        (args.shape[0], args.shape[-1]),
        args.fixed,
        example,
    )
    for shape, (apart, largest) in done.checks.items():
        print(
            f'{" x ".join(map(str, shape))}: differs from PyTorch by at most '
            f'{apart:.2g}, outputs up to {largest:.3g}'
        )
    size = done.path.stat().st_size / 2**20
    opset = f', opset {OPSET}' if args.format == 'onnx' else ''
    print(f'{done.path}: {size:.1f} MB{opset}, {done.task}')
    if done.crop:
        print(
            f'It accepts crops of {done.crop[0]} x {done.crop[1]}; '
            f'run_onnx.py slides them over a picture as in the config.'
        )


if __name__ == '__main__':
    with one_sentence_errors('export'):
        main()
