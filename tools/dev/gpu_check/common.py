# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Shared code of the parts: device, rows of results, errors and timing."""

import json
import math
import statistics
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

DRY = '--dry' in sys.argv
DEVICE = 'cpu' if DRY else 'cuda'
BF16 = torch.bfloat16
TINY = dict(
    depths=(1, 1, 2, 1), embed_dims=(8, 8, 16, 32), num_heads=(1, 1, 2, 4)
)
ARCHS = ('dat_t', 'dat_pp_t')

# Bytes written between two timed calls, more than the cache of any GPU.
FLUSHED_BYTES = 256 * 2**20
# Clocks that the device sleeps before a timed call, about a millisecond. The
# host launches everything meanwhile, so launches do not add to the time.
HEAD_START = 2_000_000


class Rows:
    """Writes each result as one line, immediately.

    Attributes:
        path: A file of JSON lines; None prints the rows only.
    """

    path: Path | None = None

    @classmethod
    def add(
        cls, table: str, what: str, ok: bool | None, why: str = '', /, **cells
    ) -> None:
        """Prints a row and writes it.

        Args:
            table: Title of the row's table.
            what: First column.
            ok: Whether a test passed; None if the row tests nothing.
            why: Reason of a failure.
            **cells: The other columns; numbers are shortened.
        """
        cells = {k.replace('_', ' '): short(v) for k, v in cells.items()}
        mark = {True: 'ok    ', False: 'FAILED', None: '      '}[ok]
        said = '  '.join(f'{k} {v}' for k, v in cells.items() if v != '')
        print(mark, f'{what:22s}', said, '' if ok else why, flush=True)
        row = dict(table=table, what=what, ok=ok, why=why, cells=cells)
        if cls.path is not None:
            with cls.path.open('a', encoding='utf-8') as file:
                print(json.dumps(row), file=file)


def short(value: object) -> str:
    """Formats a number with its significant digits only."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return '-'
    return f'{value:.1e}' if abs(value) < 1e-2 else f'{value:.3g}'


@contextmanager
def guarded(table: str, what: str, proves: bool = True):
    """Turns an exception into a row, so that the other cases still run."""
    try:
        yield
        return
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        lines = str(error).strip().splitlines() or ['']
        why = f'{type(error).__name__}: {lines[0][:200]}'
        if proves:
            Rows.add(table, what, False, why)
        else:
            Rows.add(table, what, None, '', note=why)
    if not DRY:  # here the exception no longer keeps tensors alive
        torch.cuda.synchronize()  # fails again if the context is broken
        torch.cuda.empty_cache()


def model(arch: str, backend: str | None = None) -> torch.nn.Module:
    """Builds a backbone; in a dry run a small one of the same family."""
    from mmdat import DAT

    given = dict(TINY, family=arch[:-2]) if DRY else arch
    return DAT(given, backend=backend)


def error(got: Tensor, exact: Tensor) -> float:
    """Returns the relative root mean square error; NaN if an input has NaN."""
    got, exact = got.double(), exact.double()
    return ((got - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def poison() -> None:
    """Fills the memory allocated next, so that unwritten parts show."""
    sizes = [2**10, 2**16] if DRY else [2**10, 2**14, 2**18, 2**22, 2**26]
    junk = [
        torch.full((size,), math.nan, device=DEVICE)
        for size in sizes
        for _ in range(4)
    ]
    del junk


def milliseconds(run: Callable[[], object], budget_ms: float = 80) -> float:
    """Returns the median device time of a call, with a cold cache.

    Args:
        run: The call.
        budget_ms: Approximate total time of all repetitions.
    """
    run()
    if DRY:
        return math.nan
    flush = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=DEVICE)

    def times(repeats: int) -> list[float]:
        events = []
        for _ in range(repeats):
            start, end = (
                torch.cuda.Event(enable_timing=True) for _ in range(2)
            )
            flush.zero_()
            torch.cuda._sleep(HEAD_START)
            start.record()
            run()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    once = statistics.median(times(3))
    return statistics.median(times(max(5, min(60, int(budget_ms / once)))))


def slopes_like(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Returns random gradients that depend only on the shapes."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(x.shape, generator=generator).to(x.device, x.dtype)
        for x in outputs
    ]


def no_tf32(allowed: bool = False) -> None:
    """Forbids TF32 for float32 products, or allows it."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
