# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Processes that run at the same time and can be ended together."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_MIB = 2**20


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        code: Exit code, negative for a signal.
        cpu_seconds: Processor time, user and system, of it and of those of
            its children that it waited for.
        resident_mib: Largest resident size of one process.
    """

    code: int
    cpu_seconds: float
    resident_mib: float


class Children:
    """Starts processes from several threads until told to end them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[int] = set()
        self._ended = False

    def run(
        self,
        parts: Sequence[str],
        output: Path,
        cwd: Path,
        environment: Mapping[str, str],
    ) -> Outcome:
        """Runs a command to its end.

        Args:
            parts: The command.
            output: File to which both its streams are appended.
            cwd: Where to run it.
            environment: All of its environment.

        Raises:
            InterruptedError: :meth:`end` was called before.
        """
        with open(output, 'a') as file:
            with self._lock:
                if self._ended:
                    raise InterruptedError('No run starts after end().')
                process = subprocess.Popen(
                    parts, stdout=file, stderr=file, env=environment, cwd=cwd
                )
                self._alive.add(process.pid)
            try:
                _, status, usage = os.wait4(process.pid, 0)
            finally:
                with self._lock:
                    self._alive.discard(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == 'darwin' else 1024
        return Outcome(
            process.returncode,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * unit / _MIB,
        )

    def end(self) -> None:
        """Asks every running process to end and lets none start."""
        with self._lock:
            self._ended = True
            for number in self._alive:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)
