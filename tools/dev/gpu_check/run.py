# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Tests and times mmdat on a GPU, part by part; see ../gpu_check.sh.

Each part runs in a separate process with a time limit, so a crash, a hang or a
broken CUDA context stops that part only. This file needs only the standard
library.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """A process to run.

    Attributes:
        name: Name on the command line and in the summary.
        arguments: Arguments of ``part.py``.
        seconds: Time limit.
        proves: Whether the check fails if this part does not finish.
        interpreted: Whether Triton's kernels run in its interpreter.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    proves: bool = False
    interpreted: bool = False


@dataclass
class Outcome:
    """Result of a part.

    Attributes:
        part: The part.
        ending: ``'ended'``, or why it stopped early.
        rows: Rows of results; ``ok`` is None in a row that tests nothing.
    """

    part: Part
    ending: str = 'not run'
    rows: list[dict] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Returns the failures, one sentence each."""
        bad = [
            f'{self.part.name}: {row["what"]}: {row["why"]}'
            for row in self.rows
            if row['ok'] is False
        ]
        cut_short = self.ending in ('out of time', 'not run')
        cut_short &= not self.part.proves  # some times are enough
        if self.ending != 'ended' and not cut_short:
            bad.append(f'{self.part.name}: {self.ending}')
        return bad


# Groups run in this order; parts of a group run in parallel and are not timed.
# Compiling the kernels takes most of the time of the tests.
GROUPS: tuple[tuple[Part, ...], ...] = (
    (Part('card', ('card',), 60, proves=True),),
    (
        Part('ops float32', ('ops', 'float32'), 150, proves=True),
        Part('ops bfloat16', ('ops', 'bfloat16'), 150, proves=True),
        Part('ops float16', ('ops', 'float16'), 150, proves=True),
        Part('models', ('models',), 150, proves=True),
    ),
    (Part('steps', ('steps',), 110),),
    (Part('kernels', ('kernels',), 80),),
    (Part('compile', ('compile',), 120),),
)
# In a dry run imports take most of the time, so fewer processes run the same
# code. The ops test the kernels in Triton's interpreter; the models test the
# other code.
DRY_GROUPS: tuple[tuple[Part, ...], ...] = (
    (
        Part(
            'card, models, steps, compile',
            ('card', 'models', 'steps', 'compile', '--dry'),
            400,
            proves=True,
        ),
    ),
    (
        Part(
            'ops, kernels',
            ('ops', 'kernels', 'float32', 'bfloat16', 'float16', '--dry'),
            400,
            proves=True,
            interpreted=True,
        ),
    ),
)
_PRINTING = threading.Lock()


class Log:
    """Prints each line immediately and writes it to a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open('w', encoding='utf-8', errors='replace')

    def __call__(self, line: str) -> None:
        """Prints and writes a line."""
        with _PRINTING:
            print(line[:230], flush=True)
            print(line, file=self.file, flush=True)


def run_part(
    part: Part,
    say: Log,
    seconds: float,
    program: Sequence[str] = (str(HERE / 'part.py'),),
    prefix: str = '',
) -> Outcome:
    """Runs a part for at most `seconds`."""
    outcome = Outcome(part)
    start = time.monotonic()
    environment = dict(os.environ, PYTHONUNBUFFERED='1')
    if part.interpreted:
        environment['TRITON_INTERPRET'] = '1'
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / 'rows.jsonl'
        child = subprocess.Popen(
            [sys.executable, *program, *part.arguments, '--rows', str(rows)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env=environment,
            start_new_session=True,
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        for line in child.stdout:
            if line.strip():
                say(prefix + line.rstrip())
        status = child.wait()
        timer.cancel()
        if late.is_set():
            outcome.ending = 'out of time'
        elif status < 0:
            outcome.ending = f'killed by signal {-status}'
        else:
            outcome.ending = f'status {status}' if status else 'ended'
        if rows.exists():
            for line in rows.read_text(encoding='utf-8').splitlines():
                try:
                    outcome.rows.append(json.loads(line))
                except ValueError:  # the process was killed while it wrote
                    outcome.ending += ', last row lost'
    took = time.monotonic() - start
    say(f'== {part.name}: {outcome.ending} after {took:.0f} s')
    return outcome


def run_group(parts: Sequence[Part], say: Log, left: float) -> list[Outcome]:
    """Runs parts side by side."""
    outcomes: list[Outcome] = [Outcome(part) for part in parts]
    if left < 15:
        for part in parts:
            say(f'== {part.name}: no time is left')
        return outcomes

    def one(index: int) -> None:
        part = parts[index]
        prefix = f'[{part.name}] ' if len(parts) > 1 else ''
        say(f'== {part.name}, at most {min(part.seconds, left):.0f} s')
        outcomes[index] = run_part(
            part, say, min(part.seconds, left), prefix=prefix
        )

    threads = [
        threading.Thread(target=one, args=(i,)) for i in range(len(parts))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Writes the rows as Markdown tables, in order of first appearance."""
    tables: dict[str, list[dict]] = {}
    for outcome in outcomes:
        for row in outcome.rows:
            tables.setdefault(row['table'], []).append(row)
    lines = []
    for title, rows in tables.items():
        lines += ['', f'### {title}', '']
        columns = list(dict.fromkeys(c for r in rows for c in r['cells']))
        if any(row['ok'] is not None for row in rows):
            columns.append('')
        lines.append('| ' + ' | '.join(['', *columns]) + ' |')
        lines.append('|---' * (len(columns) + 1) + '|')
        for row in rows:
            verdict = {True: 'ok', False: 'FAILED', None: ''}[row['ok']]
            cells = {**row['cells'], '': verdict}
            texts = [str(cells.get(c, '')) for c in columns]
            texts = [row['what'], *texts]
            lines.append('| ' + ' | '.join(texts).replace('\n', ' ') + ' |')
    return '\n'.join(lines).strip() + '\n'


def summary(outcomes: Sequence[Outcome]) -> tuple[list[str], bool]:
    """Returns the last lines to print, and whether all tests passed."""
    checks = [
        row['ok']
        for outcome in outcomes
        for row in outcome.rows
        if row['ok'] is not None
    ]
    failures = [line for outcome in outcomes for line in outcome.failures]
    lines = [f'{sum(checks)} of {len(checks)} checks passed.']
    for outcome in outcomes:
        if outcome.ending != 'ended' and not outcome.failures:
            lines.append(
                f'Not everything was timed: {outcome.part.name}: '
                f'{outcome.ending}'
            )
    lines += [f'FAILED {line}' for line in failures]
    if not checks:
        lines.append('FAILED: no check was completed.')
    return lines, bool(checks) and not failures


def main() -> int:
    """Runs the parts and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'parts',
        nargs='*',
        metavar='PART',
        help='card, ops, models, steps, kernels, compile; default: all',
    )
    parser.add_argument(
        '--dry',
        action='store_true',
        help='run tiny cases on a CPU and time nothing',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=os.environ.get('OUT') or 'work_dirs/gpu_check',
        help='folder for results.md, results.json and log.txt; default: $OUT, '
        'else work_dirs/gpu_check',
    )
    parser.add_argument(
        '--limit',
        type=float,
        default=460,
        help='time limit for all parts in seconds; default: %(default)s',
    )
    args = parser.parse_args()
    out = Path(args.out)
    groups = DRY_GROUPS if args.dry else GROUPS
    known = {a for g in groups for p in g for a in p.arguments} - {'--dry'}
    if unknown := set(args.parts) - known:
        parser.error(
            f'PART must be one of {", ".join(sorted(known))}; got '
            f'{", ".join(sorted(unknown))}.'
        )
    out.mkdir(parents=True, exist_ok=True)
    say = Log(out / 'log.txt')
    start = time.monotonic()
    outcomes: list[Outcome] = []
    for group in groups:
        wanted = [
            part
            for part in group
            if not args.parts or set(part.arguments) & set(args.parts)
        ]
        left = args.limit - (time.monotonic() - start)
        outcomes += run_group(wanted, say, left) if wanted else []
        # Written after each group, in case the machine disappears.
        (out / 'results.md').write_text(markdown(outcomes), encoding='utf-8')
        found = [
            dict(part=o.part.name, ending=o.ending, rows=o.rows)
            for o in outcomes
        ]
        (out / 'results.json').write_text(json.dumps(found, indent=1))
    lines, good = summary(outcomes)
    for line in [*lines, f'{time.monotonic() - start:.0f} s; {out}']:
        say(line)
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
