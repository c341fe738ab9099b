# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The arguments that all commands which run a config have in common."""

import argparse
import os
from typing import Any

from mmengine.config import DictAction


class OptionsAction(DictAction):
    """Settings as key=value; anything else ends the program with the usage."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Adds the settings to the arguments."""
        for one in values:
            if not one.partition('=')[0].strip() or '=' not in one:
                parser.error(f'{option_string} takes key=value; got {one!r}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError) as error:
            parser.error(f'{option_string} {" ".join(values)}: {error}')


def common_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with config, folders, overrides and launcher."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder of logs and results')
    parser.add_argument('--data-root', help='where the data set lies')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        help='settings to override, key=value; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--no-check',
        action='store_true',
        help='do not compare data and settings with the model before the '
        'run, nor validate on one picture',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='set by older launchers',
    )
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line, and tells mmengine which process this is."""
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args
