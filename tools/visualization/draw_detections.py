# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Draws detections beside the truth.

The predictions are the JSON that a test writes with
--cfg-options test_evaluator.outfile_prefix=PREFIX, PREFIX.segm.json.
"""

import argparse
from pathlib import Path

from PIL import Image

from mmdat.engine.configuration import load_config
from mmdat.engine.data_files import set_data_root
from mmdat.utils.errors import UserError, one_sentence_errors
from mmdat.utils.output_file import check_output_file
from mmdat.visualization.detections import draw_sheet


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config that was tested')
    parser.add_argument('predictions', help='JSON of predictions')
    parser.add_argument('out', help='picture to write')
    parser.add_argument('--data-root', help='where the data set lies')
    parser.add_argument(
        '--count', type=int, default=8, help='how many pictures'
    )
    parser.add_argument(
        '--score', type=float, default=0.3, help='lowest score to draw'
    )
    return parser.parse_args()


def main() -> None:
    """Draws and says where."""
    args = parse_args()
    with one_sentence_errors('draw_detections'):
        check_output_file(args.out, 'out')
        if Path(args.out).suffix.lower() not in Image.registered_extensions():
            raise UserError(
                f'out must be a picture, such as sheet.png; got {args.out}.'
            )
        cfg = load_config(args.config)
        if args.data_root is not None:
            set_data_root(cfg, args.data_root)
        if not Path(args.predictions).is_file():
            raise UserError(
                f'There are no predictions {args.predictions}; test with '
                f'--cfg-options test_evaluator.outfile_prefix=PREFIX first.'
            )
        dataset = cfg.test_dataloader.dataset
        root = Path(dataset.data_root)
        out = draw_sheet(
            root / dataset.ann_file,
            args.predictions,
            root / dataset.data_prefix.img,
            args.out,
            args.count,
            args.score,
        )
    print(f'Predictions beside the truth are in {out.resolve()}')


if __name__ == '__main__':
    main()
