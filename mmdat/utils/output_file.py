# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks a file to write before the work, not after it."""

import os
from pathlib import Path

from .errors import UserFileError


def check_output_file(out: str | Path, argument: str = '--out') -> None:
    """Checks that a file can be written.

    Args:
        out: The file. It may exist, and its folders may not.
        argument: What named it, for the message.

    Raises:
        UserFileError: It is a folder, or is inside something that is no
            folder or cannot be written to.
    """
    path = Path(out)
    try:
        if path.is_dir():
            raise UserFileError(
                f'{argument} must name a file; {out} is a folder.'
            )
        parent = path.absolute().parent
        while not parent.exists():
            parent = parent.parent
    except (OSError, ValueError) as error:  # too long, or with a null
        if isinstance(error, UserFileError):
            raise
        raise UserFileError(
            f'{argument} must name a file; got {str(out)[:80]!r} ({error}).'
        ) from error
    if not parent.is_dir():
        raise UserFileError(
            f'{argument} must be in a folder; {parent} in {out} is a file.'
        )
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise UserFileError(
            f'{argument} must be a file that can be written; {out} cannot.'
        )
