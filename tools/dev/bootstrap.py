# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Sets up ``.venv`` with the tested stack; safe to interrupt and run again.

Only the standard library is used, since nothing else is there yet. Each step
can be repeated, and the last writes a stamp, so that a set-up that is complete
costs nothing. mmcv has no wheel for most pairs of torch and Python: it is
compiled once and kept in a cache of the user's, for all clones.
"""

import fcntl
import hashlib
import json
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

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'mmdat-setup.json'
LOCK = ROOT / 'requirements' / 'lock.txt'
OLDEST, NEWEST = (3, 10), (3, 13)
MMCV = 'onedl-mmcv'
# Their builds look at the torch that is installed.
OPENMMLAB = ('onedl-mmdetection', 'onedl-mmsegmentation', 'onedl-mmpretrain')
NEEDED_GIB = 9


def stop(sentence: str) -> None:
    """Ends the set-up with a sentence."""
    sys.exit(f'setup: {sentence}')


def run(*command: object, **kwargs: object) -> None:
    """Runs a command whose output the user sees."""
    try:
        subprocess.run([str(c) for c in command], check=True, **kwargs)
    except subprocess.CalledProcessError as error:
        stop(
            f'"{" ".join(map(str, command))}" ended with status '
            f'{error.returncode}; its output above says why. Mend that and '
            f'run the same command again: what is done is kept.'
        )


def pip(*arguments: object) -> None:
    """Runs pip in the virtual environment."""
    run(PYTHON, '-m', 'pip', '--disable-pip-version-check', *arguments)


def ask(code: str) -> str:
    """What the virtual environment's Python prints for some code."""
    result = subprocess.run(
        [PYTHON, '-c', code], capture_output=True, text=True
    )
    if result.returncode:
        stop(
            f'the environment in {VENV} does not work ({result.stderr[-300:]}'
            f'); remove it and run the same command again.'
        )
    return result.stdout.strip()


def check_machine() -> None:
    """Stops early where the set-up could not end well."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        stop(
            f'Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} is '
            f'needed and this is {sys.version.split()[0]}; name another, as '
            f'in "make setup PYTHON=python3.11".'
        )
    free = shutil.disk_usage(ROOT).free / 2**30
    if not VENV.exists() and free < NEEDED_GIB:
        stop(
            f'about {NEEDED_GIB} GiB of disk are needed and {ROOT} has '
            f'{free:.1f}; make room.'
        )


def fingerprint() -> str:
    """What decides whether a finished set-up is still the right one."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (LOCK, ROOT / 'setup.py', Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_complete() -> bool:
    """Whether an earlier set-up ended and is still the right one."""
    try:
        found = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    return found.get('fingerprint') == fingerprint() and PYTHON.exists()


def make_venv() -> None:
    """Makes the environment, or makes it anew for another Python."""
    wanted = '.'.join(map(str, sys.version_info[:2]))
    code = 'import pip, sys; print("%d.%d" % sys.version_info[:2])'
    if PYTHON.exists():
        found = subprocess.run(
            [PYTHON, '-c', code], capture_output=True, text=True
        )
        if found.stdout.strip() == wanted:
            return
        shutil.rmtree(VENV)
    result = subprocess.run(
        [sys.executable, '-m', 'venv', '--clear', VENV],
        capture_output=True,
        text=True,
    )
    if result.returncode:
        stop(
            f'python could not make a virtual environment '
            f'({(result.stdout + result.stderr).strip()[-200:]}); on Debian '
            f'and Ubuntu install python{wanted}-venv.'
        )


def locked() -> dict[str, str]:
    """Requirement lines of the lock file by name and marker."""
    lines = {}
    for line in LOCK.read_text().splitlines():
        if line and not line.startswith(('#', ' ')):
            lines[line.split('==')[0] + line.partition(';')[2]] = line
    return lines


def install_locked() -> None:
    """Installs everything that needs no compiler."""
    later = (MMCV, *OPENMMLAB)
    with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
        file.write(
            '\n'.join(
                line
                for line in locked().values()
                if line.split('==')[0] not in later
            )
        )
        file.flush()
        pip('install', '--no-deps', '-r', file.name)
    # Two builds of OpenCV share a folder; without a screen's libraries only
    # the headless one can be imported.
    works = subprocess.run([PYTHON, '-c', 'import cv2'], capture_output=True)
    if works.returncode:
        headless = locked()['opencv-python-headless']
        pip('install', '--no-deps', '--force-reinstall', headless)


def cache_folder() -> Path:
    """Where the compiled mmcv for this torch and Python is kept."""
    base = os.environ.get('MMDAT_CACHE')
    if base is None:
        home = os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')
        base = Path(home) / 'mmdat'
    torch = ask('import torch; print(torch.__version__)').replace('+', '-')
    ops = 'cuda' if builds_for_cuda() else 'cpu'
    tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    version = locked()[MMCV].split('==')[1].split()[0]
    name = f'{MMCV.replace("-", "_")}-{version}-torch{torch}-{tag}-{ops}'
    return Path(base) / 'mmcv' / name


def builds_for_cuda() -> bool:
    """Whether mmcv can be compiled for a GPU here."""
    code = (
        'import torch; from torch.utils.cpp_extension import CUDA_HOME; '
        'print(bool(torch.cuda.is_available() and CUDA_HOME))'
    )
    return ask(code) == 'True'


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


def mmcv_wheel() -> Path:
    """The compiled mmcv: from the cache, or built into it."""
    folder = cache_folder()
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
            build_mmcv(folder)
            wheel = find_wheel(folder)
    if wheel is None:
        stop(f'compiling mmcv left no wheel in {folder}/out.')
    return wheel


def build_mmcv(folder: Path) -> None:
    """Compiles mmcv; goes on where an interrupted build stopped."""
    source = folder / 'src'
    if not (source / 'setup.py').is_file():
        fetch_source(folder, source)
    log = folder / 'build.log'
    print(
        f'    compiling it, 5 to 20 minutes on 2 cores; kept in {folder}\n'
        f'    the compiler speaks to {log}',
        flush=True,
    )
    environment = {
        **os.environ,
        'MMCV_WITH_OPS': '1',
        'MAX_JOBS': os.environ.get('MAX_JOBS', str(os.cpu_count() or 1)),
        'PATH': f'{VENV / "bin"}{os.pathsep}{os.environ["PATH"]}',
    }
    if not builds_for_cuda():
        environment['CUDA_VISIBLE_DEVICES'] = ''
        environment.pop('FORCE_CUDA', None)
    parts = folder / 'part'
    shutil.rmtree(parts, ignore_errors=True)
    command = [PYTHON, '-m', 'pip', 'wheel', '-v', '--no-deps']
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
            f'compiling mmcv failed; {log} says why. Mend that and run the '
            f'same command again: what is compiled is kept.'
        )
    # A wheel is in `out` whole or not at all.
    (folder / 'out').mkdir(exist_ok=True)
    for wheel in parts.glob('*.whl'):
        wheel.rename(folder / 'out' / wheel.name)
    shutil.rmtree(parts, ignore_errors=True)
    shutil.rmtree(source, ignore_errors=True)


def fetch_source(folder: Path, source: Path) -> None:
    """Downloads and unpacks mmcv's source."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        pip(
            'download',
            '--quiet',
            '--no-deps',
            '--no-build-isolation',
            '--no-binary=:all:',
            f'--dest={temporary}',
            locked()[MMCV].split(';')[0].strip(),
        )
        archive = next(Path(temporary).glob('*.tar.gz'))
        with tarfile.open(archive) as file:
            file.extractall(temporary)
        top = next(p for p in Path(temporary).iterdir() if p.is_dir())
        shutil.rmtree(source, ignore_errors=True)
        top.rename(source)


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


def install_mmcv() -> None:
    """Installs the compiled mmcv, unless it is there."""
    wheel = mmcv_wheel()
    pip('install', '--no-deps', wheel)
    ask('import mmcv.ops')


def install_openmmlab() -> None:
    """Installs mmdet, mmseg and mmpretrain."""
    lines = [locked()[name] for name in OPENMMLAB]
    pip('install', '--no-deps', '--no-build-isolation', *lines)


def install_mmdat() -> None:
    """Installs this checkout, editable."""
    pip('install', '--no-deps', '--no-build-isolation', '-e', ROOT)


def main() -> None:
    """Runs the steps that are left."""
    check_machine()
    if is_complete():
        return
    steps = (
        ('a virtual environment in .venv', make_venv),
        ('PyTorch and the locked packages', install_locked),
        ('mmcv', install_mmcv),
        ('mmdet, mmseg and mmpretrain', install_openmmlab),
        ('mmdat itself, editable', install_mmdat),
    )
    STAMP.unlink(missing_ok=True)
    for number, (what, step) in enumerate(steps, 1):
        print(f'[{number}/{len(steps)}] {what}', flush=True)
        step()
    partial = STAMP.with_suffix('.part')
    partial.write_text(json.dumps(dict(fingerprint=fingerprint())))
    partial.rename(STAMP)
    print(f'Set up in {VENV}.', flush=True)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        stop('interrupted; run the same command again to go on.')
