# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Runs parts of the check in this process; run.py starts it.

``python part.py NAME [NAME ...] [DTYPE ...] --rows FILE [--dry]``
"""

import argparse
import importlib
import sys
from pathlib import Path

# Each name is a file in this folder with a function ``main(dtypes)``.
PARTS = ('card', 'ops', 'models', 'steps', 'kernels', 'compile')
DTYPES = ('float32', 'bfloat16', 'float16')


def main() -> None:
    """Runs the named parts."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('names', nargs='+', choices=(*PARTS, *DTYPES))
    parser.add_argument('--rows', type=Path)
    parser.add_argument('--dry', action='store_true')
    args = parser.parse_args()
    import torch
    from common import Rows

    Rows.path = args.rows
    dtypes = [getattr(torch, n) for n in args.names if n in DTYPES]
    for name in args.names:
        if name in PARTS:
            torch.manual_seed(0)
            importlib.import_module(f'check_{name}').main(dtypes)


if __name__ == '__main__':
    sys.exit(main())
