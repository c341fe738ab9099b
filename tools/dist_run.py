# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Runs torchrun, and prints the sentence of a refused run last.

Torchrun prints a traceback when one of its processes fails. If the process
reported the reason in a sentence, this script prints that sentence after it.
"""

import json
import logging
import os
import sys
import tempfile
from pathlib import Path

# As in mmdat.utils.errors, which would import more than is needed here.
REFUSALS = 'MMDAT_REFUSALS'


def refusal(path: Path) -> str | None:
    """The sentence of the first process that told one."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
        told = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return None
    return min(told)[1] if told else None


def main() -> int:
    """Runs ``-m torch.distributed.run ...``; returns the exit code."""
    arguments = sys.argv[1:]
    if arguments[:2] == ['-m', 'torch.distributed.run']:
        arguments = arguments[2:]
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import (
        ChildFailedError,
    )

    with tempfile.TemporaryDirectory(prefix='mmdat-') as folder:
        path = Path(folder) / 'refusals'
        path.touch()
        os.environ[REFUSALS] = str(path)
        # What torchrun logs of processes that refuse says nothing new.
        for name in list(logging.root.manager.loggerDict):
            if name.startswith('torch.distributed'):
                logging.getLogger(name).addFilter(
                    lambda record: path.exists() and not refusal(path)
                )
        try:
            run.main(arguments)
        except ChildFailedError:
            sentence = refusal(path)
            if sentence is None:
                raise
            print(sentence, file=sys.stderr, flush=True)
            return 2
        except RuntimeError as error:
            if 'EADDRINUSE' not in str(error):
                raise
            port = os.environ.get('PORT', '29500')
            print(
                f'Another program listens at the port {port}; set PORT to '
                f'another number, the same on all machines.',
                file=sys.stderr,
                flush=True,
            )
            return 2
        except (SignalException, KeyboardInterrupt) as error:
            number = getattr(error, 'sigval', 2)
            print('\nInterrupted.', file=sys.stderr, flush=True)
            return 128 + int(number)
    return 0


if __name__ == '__main__':
    sys.exit(main())
