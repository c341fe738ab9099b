# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The process that one case has to itself."""

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import torch

from .cases import Case, Conditions
from .memory import is_out_of_memory, limit_memory, peak_memory
from .step import build_step, wake_libraries

OUT_OF_MEMORY = 'out of memory'
MAX_REPETITIONS = 1000
PR_SET_PDEATHSIG = 1  # of Linux: which signal to get when the parent ends


def serve(connection: Connection, case: Case, log: str) -> None:
    """Measures a case, one round whenever the other side asks for it.

    Sends first a dict with ``parameters``, ``memory`` and ``memory_source``,
    then the seconds of each round; or, in place of either, a dict with
    ``status``, why it cannot. Ends when the connection does.

    Args:
        connection: To the session.
        case: What to measure.
        log: File to which everything goes that would be printed.
    """
    _end_with_parent()
    _stay_quiet(Path(log))
    try:
        run, first = _prepare(case)
        connection.send(first)
        while connection.recv() == 'run':
            connection.send(run())
    except (EOFError, BrokenPipeError):
        return
    except BaseException as error:
        status = describe(error)
        traceback.print_exc()
        connection.send(dict(status=status))


def describe(error: BaseException) -> str:
    """What to write in a table in place of numbers."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    said = (str(error).strip().splitlines() or [''])[0]
    if isinstance(error, ImportError):
        return f'skipped: {said}'
    return f'failed: {type(error).__name__}: {said}'


def _end_with_parent() -> None:
    """However the session ends, this process does not compute on alone."""
    with suppress(AttributeError, OSError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        sys.exit('The session ended before its work began.')


def _stay_quiet(log: Path) -> None:
    """Interrupting is for the session; printing would spoil its table."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _prepare(case: Case) -> tuple[Callable[[], float], dict]:
    """Builds, weighs and warms up."""
    conditions = case.conditions
    on_cpu = torch.device(conditions.device).type == 'cpu'
    _die_first()
    if conditions.threads is not None:
        torch.set_num_threads(conditions.threads)
    wake_libraries(conditions)
    step = build_step(case)
    if on_cpu and conditions.memory_limit is not None:
        limit_memory(conditions.memory_limit)
    if case.subject.compiled:
        step.run()
    start = perf_counter()
    memory, source = peak_memory(step.run, conditions.device)
    # The first pass is slow. Where it was slow beyond doubt, do with it.
    short = perf_counter() - start < 10 * conditions.min_seconds
    repetitions = _repetitions(step.run, conditions) if short else 1

    def run() -> float:
        if short or not on_cpu:
            step.run()  # what ran before was another process
        seconds = timed(step.run, conditions.device, repetitions)
        if not on_cpu:
            # Those who wait leave the device's memory to who computes.
            torch.cuda.empty_cache()
        return seconds

    first = dict(
        parameters=step.parameters, memory=memory, memory_source=source
    )
    return run, first


def _die_first() -> None:
    """Where memory runs out the kernel shall end this process, no other."""
    with suppress(OSError):  # not Linux
        Path('/proc/self/oom_score_adj').write_text('1000')


def _repetitions(run: Callable[[], None], conditions: Conditions) -> int:
    """How often to run within a round, for a clock to be exact."""
    seconds = timed(run, conditions.device, 1)
    repetitions = math.ceil(conditions.min_seconds / max(seconds, 1e-9))
    return min(max(repetitions, 1), MAX_REPETITIONS)


def timed(run: Callable[[], None], device: str, repetitions: int) -> float:
    """Mean seconds of one run."""
    _finish(device)
    start = perf_counter()
    for _ in range(repetitions):
        run()
    _finish(device)
    return (perf_counter() - start) / repetitions


def _finish(device: str) -> None:
    """Waits for what the device still has to do."""
    kind = torch.device(device).type
    if kind != 'cpu':
        getattr(torch, kind).synchronize()
