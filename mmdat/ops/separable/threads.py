# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whole blocks of work in threads, one core each.

PyTorch splits each operation over the cores, which wait for each other after
it. For long sequences of short operations this costs more than it saves,
especially if other programs use the cores. Here each thread computes a whole
sequence of operations on one core. PyTorch releases Python's lock while it
computes.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar('Item')
Result = TypeVar('Result')

_lock = threading.Lock()
# By number of threads. None is ever shut down: another thread of Python, with
# another number, may be about to use it.
_pools: dict[int, ThreadPoolExecutor] = {}


def _start(ready: threading.Barrier) -> None:
    """Makes a new thread compute with one core."""
    # PyTorch gives a thread the number for all when it first asks for it, so
    # that has to be over.
    torch.get_num_threads()
    # Sets the calling thread, and what threads to come begin with; the caller
    # of this pool restores the latter after the barrier.
    torch.set_num_threads(1)
    ready.wait()


def _threads(count: int) -> ThreadPoolExecutor:
    """The pool of this many threads, made at its first use."""
    with _lock:
        if count not in _pools:
            ready = threading.Barrier(count + 1)
            pool = ThreadPoolExecutor(
                count, 'mmdat', initializer=_start, initargs=(ready,)
            )
            for _ in range(count):
                pool.submit(int)
            ready.wait()
            torch.set_num_threads(count)
            _pools[count] = pool
        return _pools[count]


def _forget() -> None:
    """A forked process does not have the threads of its parent."""
    global _pools, _lock
    _pools, _lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Distributes the items to as many threads as PyTorch would use."""
    count = min(torch.get_num_threads(), len(items))
    return [items[i::count] for i in range(count)]


def run(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item]
) -> list[Result]:
    """Calls `work` with each of the ``parts`` of the items.

    Args:
        work: Is called without gradients, and must not wait for other calls.
        items: The items of work.

    Returns:
        The results in the order of the parts.
    """
    shares = parts(items)
    if len(shares) < 2:
        return [work(share) for share in shares]

    # A new thread does not inherit modes, and a tensor made in inference mode
    # can be written in inference mode only.
    inference = torch.is_inference_mode_enabled()

    def without_gradients(share: Sequence[Item]) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return work(share)

    pool = _threads(torch.get_num_threads())
    return list(pool.map(without_gradients, shares))
