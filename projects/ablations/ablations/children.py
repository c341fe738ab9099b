# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Processes that run at the same time and can be ended together."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from . import measured


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
            InterruptedError: ``end`` was called before.
        """
        with self._lock:
            if self._ended:
                raise InterruptedError('No run starts after end().')
            process = subprocess.Popen(
                [sys.executable, measured.__file__, str(output), *parts],
                stdout=subprocess.PIPE,
                env=environment,
                cwd=cwd,
            )
            self._alive.add(process.pid)
        try:
            report, _ = process.communicate()
        finally:
            with self._lock:
                self._alive.discard(process.pid)
        if not report:  # it was killed itself
            return Outcome(process.returncode, 0.0, 0.0)
        return Outcome(**json.loads(report))

    def end(self) -> None:
        """Asks every running process to end and lets none start."""
        with self._lock:
            self._ended = True
            for number in self._alive:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)
