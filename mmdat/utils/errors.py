# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Errors that are the user's to mend, told in one sentence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something given to a command is wrong.

    The message states the rule, the offending value and what to do.
    """


@contextmanager
def one_sentence_errors(command: str) -> Iterator[None]:
    """Ends the program with the sentence of a :class:`UserError`.

    Of several processes of one run the first speaks; all exit with 2.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get('RANK', '0') == '0':
            print(f'{command}: {error}', file=sys.stderr, flush=True)
        sys.exit(2)
