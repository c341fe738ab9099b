# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Counts the multiply-adds and parameters of a whole model.

It needs no data and no weights, because it computes only shapes.
"""

import argparse

from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from mmdat.analysis.breakdown import Row, break_down
from mmdat.analysis.counting import count, total
from mmdat.analysis.forward import build_model, forward_whole, usual_shape
from mmdat.engine.arguments import OptionsAction
from mmdat.engine.configuration import load_config
from mmdat.utils.errors import UserError, one_sentence_errors

NOTE = """\
One multiply-add is one FLOP here, as in the papers. The count includes
convolutions, linear layers, both products of each attention (by its formula,
for any backend) and bilinear sampling (four multiply-adds per sampled value).
Window attention includes the padding of the map. The count does not include
norms, activations, softmax, interpolation, RoIAlign and non-maximum
suppression. A two-stage detector gets its largest number of proposals and
boxes.
"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        help='height and width of the image, or one number for both; default '
        '800 1280 for detection, 512 2048 for segmentation and the training '
        'size for classification',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    return parser.parse_args()


def read_shape(values: list[int]) -> tuple[int, int]:
    """Returns (H, W), given one or two numbers."""
    if len(values) > 2 or min(values) < 1:
        raise UserError(
            f'--shape takes a height and a width, or one number for both, in '
            f'pixels; got {" ".join(map(str, values))}.'
        )
    return values[0], values[-1]


def show(rows: list[Row], console: Console) -> None:
    """Prints one line per part, followed by its terms."""
    whole = sum(row.multiply_adds for row in rows)
    table = Table('part', box=None, pad_edge=False)
    for head in ('GFLOPs', '%', 'parameters, M'):
        table.add_column(head, justify='right')

    def line(label: str, some: list[Row]) -> None:
        number = sum(row.multiply_adds for row in some)
        parameters = sum(row.parameters for row in some)
        table.add_row(
            label,
            f'{number / 1e9:.3f}',
            f'{100 * number / max(whole, 1):.1f}',
            f'{parameters / 1e6:.3f}',
        )

    for part in dict.fromkeys(row.part for row in rows):
        inside = [row for row in rows if row.part == part]
        line(part or 'the model itself', inside)
        for kind in dict.fromkeys(row.kind for row in inside if row.kind):
            some = [row for row in inside if row.kind == kind]
            line(f'  {kind}', some)
            for row in some:
                if row.term:
                    line(f'    {row.term}', [row])
    table.add_section()
    line('total', rows)
    console.print(table)


def main() -> None:
    """Prints the counts."""
    args = parse_args()
    MMLogger.get_current_instance().setLevel('WARNING')
    console = Console(highlight=False, soft_wrap=True)
    with one_sentence_errors('get_flops'):
        shape = None if args.shape is None else read_shape(args.shape)
        cfg = load_config(args.config, args.cfg_options)
        model = build_model(cfg)
        height, width = shape or usual_shape(cfg, model)
        counts = count(model, (1, 3, height, width), forward_whole)
    parameters = sum(p.numel() for p in model.parameters())
    show(break_down(model, counts), console)
    console.print(f'\n{NOTE}')
    console.print(f'{args.config} at {height} x {width} (H x W)')
    console.print(f'FLOPs: {total(counts) / 1e9:.2f} G')
    console.print(f'Parameters: {parameters / 1e6:.2f} M')


if __name__ == '__main__':
    main()
