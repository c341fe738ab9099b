# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Turns a released checkpoint into a lean one in the layout of OpenMMLab.

Nothing needs it: released files load as they are. It makes them smaller,
readable by other tools, or safetensors files, and says what they are.
"""

import argparse

from rich.console import Console

from mmdat.engine.converting import Conversion, convert
from mmdat.utils.errors import one_sentence_errors


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', help='a released or trained checkpoint')
    parser.add_argument(
        'target',
        help='file to write, .pth or .safetensors; the first eight digits of '
        'its SHA-256 are added to the name',
    )
    return parser.parse_args()


def describe(done: Conversion) -> dict[str, str]:
    """What is said of the file, by topic."""
    found = done.identity
    lines = {'model': str(found)}
    if found.arch is not None:
        lines['arch'] = found.arch
    lines['task'] = found.task or 'none, a backbone alone'
    if found.method is not None:
        lines['method'] = found.method
    lines['epochs'] = 'not said' if done.epochs is None else str(done.epochs)
    if done.iterations is not None:
        lines['iterations'] = f'{done.iterations:,}'
    lines['parameters'] = f'{found.parameters:,}'
    if done.left_out:
        lines['left out'] = ', '.join(done.left_out)
    size = done.path.stat().st_size / 1e6
    lines['written'] = f'{done.path} ({size:.1f} MB)'
    return lines


def main() -> None:
    """Converts and says what it was."""
    args = parse_args()
    with one_sentence_errors('convert_released'):
        done = convert(args.source, args.target)
    console = Console(highlight=False, soft_wrap=True)
    for topic, text in describe(done).items():
        console.print(f'{topic:<11} {text}', markup=False)


if __name__ == '__main__':
    main()
