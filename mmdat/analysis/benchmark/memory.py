# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Peak memory of a piece of code, and a limit to it.

On the CPU it is what the process has resident at most, less what it had just
before. Linux keeps that high-water mark (VmHWM) and lets a process restart its
own. ``getrusage`` would not do: its maximum cannot be restarted, and a child
inherits it from the parent.
"""

import ctypes
import gc
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

STATUS = Path('/proc/self/status')
CLEAR_REFS = Path('/proc/self/clear_refs')
MEMINFO = Path('/proc/meminfo')
RESTART_PEAK = '5'  # what clear_refs takes for it, see proc_pid_clear_refs(5)

_OUT_OF_MEMORY = (
    "can't allocate memory",
    'cannot allocate memory',
    'out of memory',
    'not enough memory',
    'bad_alloc',
)


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
        return _field(MEMINFO, 'MemAvailable')
    except OSError:
        return None


def give_back_unused() -> None:
    """Returns freed memory to the system, so that its reuse is seen."""
    gc.collect()
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


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
    give_back_unused()
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
