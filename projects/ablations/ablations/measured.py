# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Runs a command and prints what it cost: ``measured.py OUTPUT COMMAND...``.

A process of its own, as a process begins with the peak of resident memory of
the one that started it (it goes through fork and exec), and this one is small.
"""

import json
import os
import signal
import subprocess
import sys
from typing import Any


def main() -> None:
    """Prints the exit code, processor time and peak memory as JSON."""
    output, *parts = sys.argv[1:]
    process, asked_to_end = None, False

    def end(*_: Any) -> None:
        nonlocal asked_to_end
        asked_to_end = True
        if process is not None:
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    # A terminal sends this one to the command as well.
    signal.signal(signal.SIGINT, lambda *_: None)
    with open(output, 'a') as file:
        process = subprocess.Popen(parts, stdout=file, stderr=file)
    if asked_to_end:  # before there was a process to tell
        process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == 'darwin' else 1024
    outcome = dict(
        code=os.waitstatus_to_exitcode(status),
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        resident_mib=usage.ru_maxrss * unit / 2**20,
    )
    print(json.dumps(outcome))


if __name__ == '__main__':
    main()
