# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Sets up ``.venv`` with the tested stack; safe to interrupt and run again.

It uses only the standard library, because nothing else is installed yet. Each
step can be repeated. The last step writes a stamp, so a complete set-up is not
repeated.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from commands import ask, mend_opencv, pip, stop
from mmcv_wheel import mmcv_wheel

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'mmdat-setup.json'
LOCK = ROOT / 'requirements' / 'lock.txt'
OLDEST, NEWEST = (3, 10), (3, 13)
MMCV = 'onedl-mmcv'
# Their builds import the installed torch.
OPENMMLAB = ('onedl-mmdetection', 'onedl-mmsegmentation', 'onedl-mmpretrain')
NEEDED_GIB = 9


def check_machine() -> None:
    """Stops early if the set-up would fail."""
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
    """A hash of everything that the set-up depends on."""
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
    """Makes the environment, or replaces that of another Python."""
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
        pip(PYTHON, 'install', '--no-deps', '-r', file.name)
    mend_opencv(PYTHON, locked()['opencv-python-headless'])


def install_mmcv() -> None:
    """Installs the compiled mmcv, unless it is there."""
    wheel = mmcv_wheel(PYTHON, locked()[MMCV].split(';')[0].strip())
    pip(PYTHON, 'install', '--no-deps', wheel)
    ask(PYTHON, 'import mmcv.ops')


def install_openmmlab() -> None:
    """Installs mmdet, mmseg and mmpretrain."""
    lines = [locked()[name] for name in OPENMMLAB]
    pip(PYTHON, 'install', '--no-deps', '--no-build-isolation', *lines)


def install_mmdat() -> None:
    """Installs this checkout, editable."""
    pip(PYTHON, 'install', '--no-deps', '--no-build-isolation', '-e', ROOT)


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
