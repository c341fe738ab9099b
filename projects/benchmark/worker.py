# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A process for each case, and their turns.

All cases of a setting live side by side, each in its own process, and only
one computes at a time: A B C, A B C, ... So the drift of a machine hits all of
them alike, and times of one round make a pair.

Peak memory on the CPU is what a process has resident at most, less what it had
just before. Linux keeps that high-water mark (VmHWM) and lets a process
restart its own. ``getrusage`` would not do: its maximum cannot be restarted,
and a child inherits it from the parent.
"""

import ctypes
import gc
import math
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from cases import Case, Conditions, Measurement
from subjects import build_step, wake_libraries

OUT_OF_MEMORY = 'out of memory'
MAX_REPETITIONS = 1000
PR_SET_PDEATHSIG = 1  # of Linux: which signal to get when the parent ends
STATUS = Path('/proc/self/status')
CLEAR_REFS = Path('/proc/self/clear_refs')
RESTART_PEAK = '5'  # what clear_refs takes for it, see proc_pid_clear_refs(5)
_OUT_OF_MEMORY = (
    "can't allocate memory",
    'cannot allocate memory',
    'out of memory',
    'not enough memory',
    'bad_alloc',
)


@dataclass(frozen=True)
class Rules:
    """How a session goes.

    Attributes:
        rounds: Timed rounds; one more comes before, for memory and warm-up.
        timeout: Seconds to wait for one round of one case, None for ever.
        log: File for what the processes print.
    """

    rounds: int
    timeout: float | None
    log: Path


class Worker:
    """A case's process, seen from the session.

    Args:
        case: What it measures.
        rules: How.
    """

    def __init__(self, case: Case, rules: Rules) -> None:
        self.timeout = rules.timeout
        self.result = Measurement(case)
        context = multiprocessing.get_context('spawn')
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, case, str(rules.log))
        )
        self._process.start()
        theirs.close()

    @property
    def works(self) -> bool:
        """Whether it can be asked for another round."""
        return self.result.status == 'ok'

    def prepare(self) -> None:
        """Waits for weights, input, warm-up and peak memory."""
        if (answer := self._answer()) is not None:
            self.result.parameters = answer['parameters']
            self.result.memory = answer['memory']
            self.result.memory_source = answer['memory_source']

    def run(self) -> None:
        """Times one round."""
        try:
            self._connection.send('run')
        except BrokenPipeError:
            self._give_up(self._cause_of_death())
            return
        if (answer := self._answer()) is not None:
            self.result.seconds += (answer,)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _answer(self) -> Any:
        """What the process says; None, and a status, if it is nothing."""
        try:
            if not self._connection.poll(self.timeout):
                self._give_up(f'timed out after {self.timeout:g} s')
                return None
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._give_up(self._cause_of_death())
            return None
        if isinstance(answer, dict) and 'status' in answer:
            self._give_up(answer['status'])
            return None
        return answer

    def _cause_of_death(self) -> str:
        self._process.join()
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return OUT_OF_MEMORY
        if code < 0:
            return f'failed: ended by {signal.Signals(-code).name}'
        return f'failed: exit status {code}'

    def _give_up(self, status: str) -> None:
        """A case that breaks off has no numbers at all."""
        self.result = Measurement(self.result.case, status)
        self.close()


def measure(
    cases: Sequence[Case], rules: Rules, tick: Callable[[str], None]
) -> list[Measurement]:
    """Measures cases of one setting in turns.

    Args:
        cases: What to measure.
        rules: How.
        tick: Called with the label of a subject whenever it has done one of
            its ``rules.rounds + 1`` turns, or would have, had it not failed.

    Returns:
        A measurement of each case; those that could not be have a status.
    """
    with ExitStack() as stack:
        workers = []
        for case in cases:
            worker = Worker(case, rules)
            stack.callback(worker.close)
            worker.prepare()
            workers.append(worker)
            tick(case.subject.label)
        for _ in range(rules.rounds):
            for case, worker in zip(cases, workers):
                if worker.works:
                    worker.run()
                tick(case.subject.label)
        return [worker.result for worker in workers]


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
    # Where memory runs out the kernel shall end this process, no other.
    with suppress(OSError):  # not Linux
        Path('/proc/self/oom_score_adj').write_text('1000')
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
            # Processes that wait leave the device's memory to the others.
            torch.cuda.empty_cache()
        return seconds

    first = dict(
        parameters=step.parameters, memory=memory, memory_source=source
    )
    return run, first


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


def _field(file: Path, name: str) -> int:
    """Bytes of a line ``name: 123 kB``."""
    for line in file.read_text().splitlines():
        key, _, value = line.partition(':')
        if key == name:
            return 1024 * int(value.split()[0])
    raise OSError(f'{file} has no {name}')


def available_memory() -> int | None:
    """Bytes that can be had without swapping, None if not known."""
    try:
        return _field(Path('/proc/meminfo'), 'MemAvailable')
    except OSError:
        return None


def peak_memory(
    run: Callable[[], object], device: str
) -> tuple[int | None, str]:
    """Runs something and says how much memory it took at its peak.

    Args:
        run: What to run.
        device: Where it computes; memory is counted there.

    Returns:
        Bytes beyond what was in use just before, and where the number comes
        from; None and the reason where it cannot be had.
    """
    if torch.device(device).type == 'cuda':
        return _peak_on_cuda(run)
    gc.collect()
    # Returns freed memory to the system, so that its reuse is seen.
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        before = _field(STATUS, 'VmRSS')
        CLEAR_REFS.write_text(RESTART_PEAK)
    except OSError as error:
        run()
        return None, f'not measured: {error}'
    run()
    return max(_field(STATUS, 'VmHWM') - before, 0), 'resident (VmHWM)'


def _peak_on_cuda(run: Callable[[], object]) -> tuple[int, str]:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return peak - before, 'CUDA allocator'


def limit_memory(extra: int) -> None:
    """Has allocations fail that go beyond what is in use now by `extra`."""
    limit = _field(STATUS, 'VmSize') + extra
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    said = str(error).lower()
    return any(phrase in said for phrase in _OUT_OF_MEMORY)
