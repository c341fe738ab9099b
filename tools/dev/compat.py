# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Runs the core of the suite with other versions of what mmdat needs.

Each set of versions has an environment of its own under ``.venv-compat``,
with torch, mmengine and the test runner in it and nothing else: no mmcv, no
mmdet, no mmseg. Environments are kept, so that the downloads, 3 to 5 GiB each,
come once; only the standard library is used. ``make test-compat`` runs all,
``python tools/dev/compat.py oldest`` one of them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / '.venv-compat'
NEEDED_GIB = 7

# The core: what the backbone, its ops, the registry and checkpoints promise.
CORE = (
    'tests/test_oracle',
    'tests/test_ops',
    'tests/test_models',
    'tests/test_checkpoints',
    'tests/test_registry.py',
)
RUNNER = ('pytest', 'hypothesis')
# Exact, so that a failure is ours. A set with no versions takes the lock's.
ENVIRONMENTS = {
    # The oldest torch of setup.py, which wants numpy 1 (and numpy 1 an older
    # OpenCV), with the last official mmengine.
    'oldest': (
        'torch==2.1.2',
        'mmengine==0.10.7',
        'numpy==1.26.4',
        'opencv-python==4.11.0.86',
    ),
    # The fork's runner, which reads checkpoints, imports OpenCV and does not
    # ask for it.
    'locked': ('torch', 'onedl-mmengine', 'opencv-python-headless'),
    # To be raised with every release of torch or of the maintained fork.
    'newest': (
        'torch==2.15.0',
        'onedl-mmengine==0.10.12',
        'opencv-python-headless',
        'safetensors',
    ),
}
# There are no wheels of torch 2.1 for a later Python.
NEWEST_PYTHON = {'oldest': (3, 11)}
VERSIONS = (
    'import platform, numpy, torch, mmengine\n'
    'print(platform.python_version(), torch.__version__,'
    ' mmengine.__version__, numpy.__version__)'
)


def make(name: str, wanted: tuple[str, ...]) -> Path:
    """Makes an environment, unless it is there and still the right one.

    Returns:
        Its Python.
    """
    folder = HOME / name
    python, stamp = folder / 'bin' / 'python', folder / 'versions.txt'
    lock = ROOT / 'requirements' / 'lock.txt'
    pinned = any('==' in line for line in wanted)
    versions = '\n'.join((sys.version, *wanted, *RUNNER))
    if not pinned:
        versions += lock.read_text()
    if stamp.exists() and stamp.read_text() == versions:
        return python
    newest = NEWEST_PYTHON.get(name, sys.version_info[:2])
    if sys.version_info[:2] > newest:
        sys.exit(
            f'compat: "{name}" needs Python {newest[0]}.{newest[1]} or older '
            f'and this is {sys.version.split()[0]}; name another, as in "make '
            f'test-compat PYTHON=python{newest[0]}.{newest[1]}".'
        )
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < NEEDED_GIB:
        sys.exit(
            f'compat: about {NEEDED_GIB} GiB of disk are needed for {folder} '
            f'and {free:.1f} are free; make room.'
        )
    print(f'{name}: installing {" ".join(wanted)}', flush=True)
    run(sys.executable, '-m', 'venv', '--clear', folder)
    # The versions above also stand against constraints of the user's own.
    constraint = os.devnull if pinned else str(lock)
    run(
        *(python, '-m', 'pip', 'install', '--quiet', '--no-cache-dir'),
        *('--disable-pip-version-check', *wanted, *RUNNER),
        env={**os.environ, 'PIP_CONSTRAINT': constraint},
    )
    stamp.write_text(versions)
    return python


def run(*command: object, **kwargs: object) -> None:
    """Runs a command, and stops if it fails."""
    done = subprocess.run([str(c) for c in command], **kwargs)
    if done.returncode:
        sys.exit(
            f'compat: "{" ".join(map(str, command))}" ended with status '
            f'{done.returncode}; its output above says why.'
        )


def run_core(python: Path, arguments: list[str]) -> tuple[bool, str]:
    """Runs the tests of the core.

    Returns:
        Whether they passed, and what pytest counted.
    """
    command = [python, '-m', 'pytest', '-q', '-rs', '-p', 'no:cacheprovider']
    # Of this checkout, also if another mmdat is on the path.
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        [str(c) for c in (*command, *(arguments or CORE))],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    last = ''
    for line in process.stdout:
        print(line, end='', flush=True)
        last = line.strip() or last
    counts = re.findall(r'\d+ (?:passed|failed|skipped|error)\w*', last)
    return process.wait() == 0, ', '.join(counts) or 'no tests'


def main() -> int:
    """Runs each environment and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help=f'which sets of versions, of {", ".join(ENVIRONMENTS)} (all)',
    )
    parser.add_argument(
        '--tests', nargs='+', default=[], help='other tests than the core'
    )
    args = parser.parse_args()
    unknown = set(args.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f'no set of versions is called {", ".join(unknown)}')
    rows, good = [], True
    for name in args.names or ENVIRONMENTS:
        python = make(name, ENVIRONMENTS[name])
        found = subprocess.run(
            [python, '-c', VERSIONS], capture_output=True, text=True
        )
        if found.returncode:
            sys.exit(f'compat: {python} does not work: {found.stderr[-500:]}')
        start = time.time()
        passed, counts = run_core(python, args.tests)
        good &= passed
        versions = found.stdout.split()
        rows.append((name, *versions, counts, f'{time.time() - start:.0f} s'))
    rows.insert(
        0, ('', 'Python', 'torch', 'mmengine', 'numpy', 'tests', 'time')
    )
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(map(str.ljust, row, widths)).rstrip())
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
