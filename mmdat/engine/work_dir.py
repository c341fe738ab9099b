# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A writable work dir for one training at a time."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

from ..utils.errors import UserFileError

LOCK = '.training'

# A lock is held while its file is open: until the process ends, in any way.
_held: dict[Path, BinaryIO] = {}


def alive(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def prepare_work_dir(work_dir: str) -> None:
    """Makes a work dir and keeps other trainings out of it.

    The system releases the lock when this process ends, in any way. Child
    processes do not hold it.

    Args:
        work_dir: The folder.

    Raises:
        UserFileError: It cannot be written, or another training is in it.
    """
    folder = Path(work_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        if folder in _held:
            return
        file = (folder / LOCK).open('a+b')
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        raise UserFileError(
            f'The work dir must be a folder that can be written; {work_dir} '
            f'is not ({reason}), so name another, --work-dir FOLDER.'
        ) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        who = _who(file.read())
        file.close()
        raise UserFileError(
            f'A work dir is for one training at a time; {work_dir} is in use '
            f'by {who}, so wait for its end, or name another, --work-dir '
            f'FOLDER.'
        ) from error
    except OSError:
        pass  # a file system without locks
    note = dict(
        process=os.getpid(),
        machine=socket.gethostname(),
        since=time.strftime('%Y-%m-%d %H:%M:%S'),
    )
    file.truncate(0)
    file.write(json.dumps(note).encode())
    file.flush()
    _held[folder] = file


def _who(content: bytes) -> str:
    """The process that a lock names."""
    try:
        note: Any = json.loads(content)
        return (
            f'process {note["process"]} on {note["machine"]} since '
            f'{note["since"]}'
        )
    except (ValueError, KeyError, TypeError):
        return 'another process'
