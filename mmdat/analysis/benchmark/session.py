# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Has the processes of compared cases take turns.

All cases of a setting live side by side, each in its own process, and only
one computes at a time: A B C, A B C, ... So the drift of a machine hits all of
them alike, and times of one round make a pair.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case, Measurement
from .worker import OUT_OF_MEMORY, serve


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
        """Whether there is any sense in going on."""
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
