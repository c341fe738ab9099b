# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Errors that a user can fix, in one sentence."""

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches

# File to which the processes of our launcher write their messages, so that the
# launcher can print one of them last; see tools/dist_run.py.
REFUSALS = 'MMDAT_REFUSALS'
# Variables with the rank of a process.
_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK', 'PMI_RANK')


class UserError(Exception):
    """An argument, file or setting from the user is wrong.

    The message states the rule, the offending value and what to do.
    """


class SettingError(UserError, ValueError, TypeError):
    """A [`UserError`][] about an argument of a wrong type or value.

    Code that builds models catches ``ValueError`` or ``TypeError``.
    """


class UserFileError(UserError, OSError):
    """A [`UserError`][] about a file that cannot be read or written."""


class UserFileNotFoundError(UserFileError, FileNotFoundError):
    """A [`UserError`][] about a file that is not there."""


def similar(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence that proposes a known name, or ``''``."""
    close = get_close_matches(name, [str(one) for one in known], 1, 0.65)
    return f'; a similar name is {close[0]!r}' if close else ''


def rank() -> int:
    """The number of this process among those of one run, 0 for the first."""
    for name in _RANKS:
        if os.environ.get(name, '').isdigit():
            return int(os.environ[name])
    return 0


def speaks() -> bool:
    """Whether this process prints messages that concern all processes.

    Processes of torchrun share a terminal with those of their machine, others
    with all of a run.
    """
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        return os.environ.get('LOCAL_RANK', '0') == '0'
    return rank() == 0


def warn_once(sentence: str) -> None:
    """Prints a warning once, whatever the number of processes."""
    if speaks():
        print(f'warning: {sentence}', file=sys.stderr, flush=True)


@contextmanager
def one_sentence_errors(command: str) -> Iterator[None]:
    """Ends the program with the message of a [`UserError`][].

    With several processes, the first prints; all exit with status 2. Ctrl-C
    ends the program without a traceback, with status 130.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except UserError as error:
        _tell(f'{command}: {error}')
        sys.exit(2)
    except KeyboardInterrupt:
        # A second Ctrl-C, and what libraries do at their end, may not bring
        # the traceback back.
        with suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        more = ''
        if command == 'train':
            more = '; add --resume to continue from the last checkpoint'
        if REFUSALS not in os.environ and speaks():
            print(f'\n{command}: interrupted{more}.', file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(130)


def _tell(sentence: str) -> None:
    """Prints why the run ends, or lets the launcher print it last."""
    path = os.environ.get(REFUSALS)
    if path is not None:
        with suppress(OSError), open(path, 'a', encoding='utf-8') as file:
            file.write(json.dumps([rank(), sentence]) + '\n')
            return
    if speaks():
        print(sentence, file=sys.stderr, flush=True)
