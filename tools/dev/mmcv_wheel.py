# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compiles mmcv, the fork or the official one, and keeps the wheel.

mmcv has no wheel for most pairs of torch and Python. It is compiled once for
each and kept in a cache of the user's, for all clones and environments. Only
the standard library is used; the environment it is compiled for has torch,
setuptools, wheel and ninja.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

from commands import ask, pip, stop


def mmcv_wheel(python: Path, requirement: str) -> Path:
    """The compiled mmcv: from the cache, or built into it.

    Args:
        python: Of the environment, which has the torch to compile against.
            It is of the same version as the Python that runs this.
        requirement: Such as ``mmcv==2.1.0``.
    """
    folder = cache_folder(python, requirement)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('    another set-up is compiling it; waiting', flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        wheel = find_wheel(folder)
        if wheel is None:
            check_compiler()
            build(folder, python, requirement)
            wheel = find_wheel(folder)
    if wheel is None:
        stop(f'compiling mmcv left no wheel in {folder}/out.')
    return wheel


def cache_folder(python: Path, requirement: str) -> Path:
    """Where the compiled mmcv for this torch and Python is kept."""
    base = os.environ.get('MMDAT_CACHE')
    if base is None:
        home = os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')
        base = Path(home) / 'mmdat'
    torch = ask(python, 'import torch; print(torch.__version__)')
    ops = 'cuda' if builds_for_cuda(python) else 'cpu'
    tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    name, version = requirement.split('==')
    parts = (
        name.replace('-', '_'),
        version,
        f'torch{torch.replace("+", "-")}',
        tag,
        ops,
    )
    return Path(base) / 'mmcv' / '-'.join(parts)


def builds_for_cuda(python: Path) -> bool:
    """Whether mmcv can be compiled for a GPU here."""
    code = (
        'import torch; from torch.utils.cpp_extension import CUDA_HOME; '
        'print(bool(torch.cuda.is_available() and CUDA_HOME))'
    )
    return ask(python, code) == 'True'


def check_compiler() -> None:
    """Stops if mmcv cannot be compiled."""
    compiler = os.environ.get('CXX', 'g++')
    if shutil.which(compiler) is None:
        stop(
            f'mmcv has to be compiled and there is no {compiler}; install a '
            f'C++ compiler (Debian and Ubuntu: apt install build-essential) '
            f'or set CXX.'
        )
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.is_file():
        stop(
            f'mmcv has to be compiled and {header} is missing; install '
            f'the headers of Python (Debian and Ubuntu: apt install '
            f'python{sys.version_info[0]}.{sys.version_info[1]}-dev).'
        )


def find_wheel(folder: Path) -> Path | None:
    """The finished wheel in a cache folder."""
    return next(iter(sorted((folder / 'out').glob('*.whl'))), None)


def build(folder: Path, python: Path, requirement: str) -> None:
    """Compiles mmcv; goes on where an interrupted build stopped."""
    source = folder / 'src'
    if not (source / 'setup.py').is_file():
        fetch_source(folder, python, requirement)
    log = folder / 'build.log'
    print(
        f'    compiling it, 5 to 20 minutes on 2 cores; kept in {folder}\n'
        f'    output of the compiler: {log}',
        flush=True,
    )
    environment = {
        **os.environ,
        'MMCV_WITH_OPS': '1',
        'MAX_JOBS': os.environ.get('MAX_JOBS', str(os.cpu_count() or 1)),
        'PATH': f'{Path(python).parent}{os.pathsep}{os.environ["PATH"]}',
    }
    if not builds_for_cuda(python):
        environment['CUDA_VISIBLE_DEVICES'] = ''
        environment.pop('FORCE_CUDA', None)
    parts = folder / 'part'
    shutil.rmtree(parts, ignore_errors=True)
    command = [python, '-m', 'pip', 'wheel', '-v', '--no-deps']
    command += ['--no-build-isolation', '-w', parts, source]
    with log.open('w') as file:
        process = subprocess.Popen(
            [str(c) for c in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        show_progress(process, file)
    if process.wait():
        tail = log.read_text().splitlines()[-15:]
        print('\n'.join(tail), file=sys.stderr)
        stop(
            f'compiling mmcv failed; {log} says why. Fix that and run the '
            f'same command again; compiled files are kept.'
        )
    # A wheel is in `out` whole or not at all.
    (folder / 'out').mkdir(exist_ok=True)
    for wheel in parts.glob('*.whl'):
        wheel.rename(folder / 'out' / wheel.name)
    shutil.rmtree(parts, ignore_errors=True)
    shutil.rmtree(source, ignore_errors=True)


def fetch_source(folder: Path, python: Path, requirement: str) -> None:
    """Downloads and unpacks mmcv's source into ``src``."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip(
            *(python, 'download', '--quiet', '--no-deps'),
            *('--no-build-isolation', '--no-binary=:all:'),
            *(f'--dest={temporary}', requirement),
        )
        archive = next(Path(temporary).glob('*.tar.gz'))
        with tarfile.open(archive) as file:
            file.extractall(temporary)
        top = next(p for p in Path(temporary).iterdir() if p.is_dir())
        shutil.rmtree(folder / 'src', ignore_errors=True)
        top.rename(folder / 'src')


def show_progress(process: subprocess.Popen, log: object) -> None:
    """Copies a build's output to its log, and its count to the screen."""
    start, shown = time.time(), 0.0
    live = sys.stdout.isatty()
    for line in process.stdout:
        log.write(line)
        log.flush()
        count = re.search(r'\[(\d+)/(\d+)\]', line)
        if not count or time.time() - shown < (0.5 if live else 20):
            continue
        shown = time.time()
        done, total = int(count[1]), int(count[2])
        bar = '#' * (30 * done // total)
        text = (
            f'    [{bar:30}] {done}/{total} files, '
            f'{(shown - start) / 60:.1f} min'
        )
        print(text, end='\r' if live else '\n', flush=True)
    if live:
        print()
