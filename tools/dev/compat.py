# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Runs the suite with other versions of what mmdat needs.

Each set of versions has a separate environment under ``.venv-compat``. Most
contain only torch, mmengine and the test runner, and run the core of the
suite. ``official`` has the official OpenMMLab packages, with a
compiled mmcv, and runs all of it; ``locked-all`` does so with the locked ones,
for a Python that is not the one of ``.venv``, and only when it is named.
Environments are kept, so each download of 3 to 8 GiB happens once. This file
uses only the standard library. ``make test-compat`` runs all,
``python tools/dev/compat.py oldest`` one of them.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from commands import ask, mend_opencv, pip, run, stop
from mmcv_wheel import mmcv_wheel

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / '.venv-compat'
LOCKS = ROOT / 'requirements'

# The core: what the backbone, its ops, the registry and checkpoints promise.
CORE = (
    'tests/test_oracle',
    'tests/test_ops',
    'tests/test_models',
    'tests/test_checkpoints',
    'tests/test_registry.py',
)
RUNNER = ('pytest', 'hypothesis')


@dataclass(frozen=True)
class Environment:
    """Versions that are tried together.

    Attributes:
        needs: What pip installs, with exact versions, so that a failure is
            ours. Without versions they are those of `lock`.
        lock: File of ``requirements`` with versions of everything. Without
            `needs` all of it is installed, mmcv compiled, and the whole suite
            run.
        extra: Installed last and without what they ask for.
        newest_python: The last one that has wheels of all that.
        gib: Room it takes while it is made.
    """

    needs: tuple[str, ...] = ()
    lock: str | None = None
    extra: tuple[str, ...] = ()
    newest_python: tuple[int, int] = (3, 13)
    gib: int = 7

    @property
    def tests(self) -> tuple[str, ...]:
        """What to run."""
        return CORE if self.needs else ('tests',)


OFFICIAL_ENGINE = ('mmengine==0.10.7', 'opencv-python==4.11.0.86')
FORKED_ENGINE = ('onedl-mmengine==0.10.12', 'opencv-python-headless')
ENVIRONMENTS = {
    # The oldest torch of setup.py, which wants numpy 1 (and numpy 1 an older
    # OpenCV), with the last official mmengine.
    'oldest': Environment(
        ('torch==2.1.2', *OFFICIAL_ENGINE, 'numpy==1.26.4'),
        newest_python=(3, 11),
    ),
    # Between: the first torch with custom operators, and later ones.
    'torch2.4': Environment(
        ('torch==2.4.1', *OFFICIAL_ENGINE, 'numpy==1.26.4'),
        newest_python=(3, 12),
    ),
    'torch2.7': Environment(
        ('torch==2.7.1', *OFFICIAL_ENGINE, 'numpy==2.2.6'),
    ),
    'torch2.9': Environment(
        ('torch==2.9.1', *FORKED_ENGINE, 'numpy==2.2.6'),
    ),
    # The fork's runner, which reads checkpoints, imports OpenCV without
    # declaring it.
    'locked': Environment(
        ('torch', 'onedl-mmengine', 'opencv-python-headless'), 'lock.txt'
    ),
    # To be raised with every release of torch or of the maintained fork.
    'newest': Environment(('torch==2.15.0', *FORKED_ENGINE, 'safetensors')),
    # As most people have them.
    'official': Environment(
        lock='official.txt',
        extra=('openmim==0.3.9',),
        newest_python=(3, 11),
        gib=12,
    ),
    # The stack of `make test`, for a Python that is not the one of .venv.
    'locked-all': Environment(lock='lock.txt', gib=12),
}
# Run when none is named.
USUAL = tuple(name for name in ENVIRONMENTS if name != 'locked-all')
VERSIONS = (
    'import platform, numpy, torch, mmengine\n'
    'print(platform.python_version(), torch.__version__,'
    ' mmengine.__version__, numpy.__version__)'
)


def make(name: str, wanted: Environment) -> Path:
    """Makes an environment, unless it is there and still the right one.

    Returns:
        Its Python.
    """
    folder = HOME / name
    python, stamp = folder / 'bin' / 'python', folder / 'versions.txt'
    versions = '\n'.join((sys.version, *wanted.needs, *wanted.extra, *RUNNER))
    if wanted.lock is not None:
        versions += (LOCKS / wanted.lock).read_text()
    if stamp.exists() and stamp.read_text() == versions:
        return python
    newest = wanted.newest_python
    if sys.version_info[:2] > newest:
        stop(
            f'"{name}" needs Python {newest[0]}.{newest[1]} or older '
            f'and this is {sys.version.split()[0]}; name another, as in "make '
            f'test-compat PYTHON=python{newest[0]}.{newest[1]}".'
        )
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < wanted.gib:
        stop(
            f'about {wanted.gib} GiB of disk are needed for {folder} '
            f'and {free:.1f} are free; make room.'
        )
    run(sys.executable, '-m', 'venv', '--clear', folder)
    if wanted.needs:
        install_core(name, python, wanted)
    else:
        install_all(name, python, LOCKS / wanted.lock)
    if wanted.extra:
        pip(python, 'install', '--quiet', '--no-deps', *wanted.extra)
    stamp.write_text(versions)
    return python


def install_core(name: str, python: Path, wanted: Environment) -> None:
    """Installs what the core needs, and what that asks for."""
    print(f'{name}: installing {" ".join(wanted.needs)}', flush=True)
    # The versions also stand against constraints of the user's own.
    constraint = LOCKS / wanted.lock if wanted.lock else os.devnull
    pip(
        *(python, 'install', '--quiet', '--no-cache-dir'),
        *(*wanted.needs, *RUNNER),
        env={**os.environ, 'PIP_CONSTRAINT': str(constraint)},
    )


def install_all(name: str, python: Path, lock: Path) -> None:
    """Installs all that a lock file names, with mmcv compiled."""
    print(f'{name}: installing {lock.name}', flush=True)
    lines = [
        line
        for line in lock.read_text().splitlines()
        if line and not line.startswith(('#', ' '))
    ]
    # mmcv compiles against torch, and builds of others look at both.
    mmcv = next(x for x in lines if re.match(r'(onedl-)?mmcv==', x))
    others = [x for x in lines if re.match(r'(onedl-)?mm(det|seg|pre)', x)]
    first = [line for line in lines if line not in (mmcv, *others)]
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        file.write('\n'.join(first))
        file.flush()
        pip(
            *(python, 'install', '--quiet', '--no-cache-dir', '--no-deps'),
            *('-r', file.name),
        )
    for line in first:
        if line.startswith('opencv-python-headless=='):
            mend_opencv(python, line)
    print(f'{name}: {mmcv}', flush=True)
    wheel = mmcv_wheel(python, mmcv.split(';')[0].strip())
    pip(python, 'install', '--quiet', '--no-deps', wheel)
    pip(
        *(python, 'install', '--quiet', '--no-deps', '--no-build-isolation'),
        *others,
    )
    ask(python, 'import mmcv.ops, mmdet, mmseg, mmpretrain')


def run_tests(
    python: Path, arguments: tuple[str, ...] | list[str]
) -> tuple[bool, str]:
    """Runs tests.

    Returns:
        Whether they passed, and what pytest counted.
    """
    command = [python, '-m', 'pytest', '-q', '-rs', '-p', 'no:cacheprovider']
    # Of this checkout, also if another mmdat is on the path.
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'MMDAT_COMPAT_HOME': str(HOME),
    }
    process = subprocess.Popen(
        [str(c) for c in (*command, *arguments)],
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
        '--tests', nargs='+', default=[], help='other tests than usual'
    )
    parser.add_argument(
        '--remove',
        action='store_true',
        help='remove each environment after its tests, for a small disk',
    )
    args = parser.parse_args()
    unknown = set(args.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f'no set of versions is called {", ".join(unknown)}')
    rows, good = [], True
    for name in args.names or USUAL:
        wanted = ENVIRONMENTS[name]
        python = make(name, wanted)
        versions = ask(python, VERSIONS).split()
        start = time.time()
        passed, counts = run_tests(python, args.tests or wanted.tests)
        good &= passed
        rows.append((name, *versions, counts, f'{time.time() - start:.0f} s'))
        if args.remove:
            shutil.rmtree(HOME / name)
    rows.insert(
        0, ('', 'Python', 'torch', 'mmengine', 'numpy', 'tests', 'time')
    )
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(map(str.ljust, row, widths)).rstrip())
    return 0 if good else 1


if __name__ == '__main__':
    sys.exit(main())
