# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Makes a small real data set: handwritten digits on photographs."""

import argparse
import sys

from mmdat.datasets.digits import DigitsOptions, make_digits


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    defaults = DigitsOptions()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--out', default='data/digits', help='folder to make')
    for name, text in (
        ('train', 'training pictures'),
        ('val', 'validation pictures'),
        ('size', 'side of a picture in pixels'),
        ('crops', 'single-digit pictures per class'),
        ('crop_size', 'side of these in pixels'),
        ('seed', 'random seed'),
    ):
        parser.add_argument(
            f'--{name.replace("_", "-")}',
            type=int,
            default=getattr(defaults, name),
            help=text,
        )
    parser.add_argument(
        '--crop-share',
        type=float,
        nargs=2,
        default=defaults.crop_share,
        metavar=('LOW', 'HIGH'),
        help='height of the digit of these over their side',
    )
    parser.add_argument(
        '--crop-brightness',
        type=float,
        default=defaults.crop_brightness,
        help='of the photograph behind it, 1 as it is, 0 black',
    )
    return parser.parse_args()


def main() -> None:
    """Makes the data set and says where it is."""
    options = vars(parse_args())
    out = options.pop('out')
    options['crop_share'] = tuple(options['crop_share'])
    try:
        root = make_digits(out, DigitsOptions(**options))
    except (ValueError, OSError) as error:
        sys.exit(f'make_digits: {error}')
    print(f'The digits data set is in {root.resolve()}')


if __name__ == '__main__':
    main()
