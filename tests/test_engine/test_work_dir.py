# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""One training in a work dir, and what is left when it is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mmdat.engine.hooks.atomic_checkpoint import WholeFilesBackend
from mmdat.engine.work_dir import prepare_work_dir
from mmdat.utils.errors import UserError

HOLD = """
import sys, time
from mmdat.engine.work_dir import prepare_work_dir
prepare_work_dir(sys.argv[1])
print('held', flush=True)
time.sleep(300)
"""
WRITE = """
import os, sys, time
from mmdat.engine.hooks.atomic_checkpoint import WholeFilesBackend
wait = os.fsync
def stop(_):
    print('writing', flush=True)
    time.sleep(300)
os.fsync = stop
WholeFilesBackend().put(b'short', sys.argv[1])
"""


@pytest.fixture
def start():
    """Starts a program and waits for its first line."""
    started = []

    def run(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, '-c', code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_a_second_training_is_told_of_the_first(start, tmp_path):
    first = start(HOLD, tmp_path / 'work')
    with pytest.raises(UserError) as caught:
        prepare_work_dir(str(tmp_path / 'work'))
    assert f'in use by process {first.pid} on ' in str(caught.value)
    assert '--work-dir FOLDER' in str(caught.value)
    prepare_work_dir(str(tmp_path / 'other'))
    first.send_signal(signal.SIGKILL)
    first.wait()
    prepare_work_dir(str(tmp_path / 'work'))  # its lock went with it
    prepare_work_dir(str(tmp_path / 'work'))  # mine


@pytest.mark.parametrize('kind', ['file', 'below a file', 'long', 'null'])
def test_what_is_no_folder(kind, tmp_path):
    (tmp_path / 'file').write_text('')
    name = {
        'file': tmp_path / 'file',
        'below a file': tmp_path / 'file' / 'work',
        'long': tmp_path / ('x' * 300),
        'null': f'{tmp_path}/a\0b',
    }[kind]
    with pytest.raises(UserError, match='must be a folder that can be wri'):
        prepare_work_dir(str(name))


def test_two_processes_write_one_file(start, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    other = start(WRITE, path)
    WholeFilesBackend().put(b'whole and longer', path)
    assert path.read_bytes() == b'whole and longer'
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert path.read_bytes() == b'whole and longer'
    WholeFilesBackend().put(b'again', path)
    assert path.read_bytes() == b'again'
    assert [p.name for p in tmp_path.iterdir()] == ['epoch_1.pth']


def test_processes_end_when_their_launcher_is_killed(tmp_path):
    """The launcher starts one that watches it, and is killed."""
    watching = (
        'import os, time\n'
        'from mmdat.engine.distributed import _end_with\n'
        '_end_with(os.getppid())\n'
        'print(os.getpid(), flush=True)\n'
        'time.sleep(300)\n'
    )
    launching = (
        'import subprocess, sys\n'
        f'subprocess.run([sys.executable, "-c", {watching!r}])\n'
    )
    launcher = subprocess.Popen(
        [sys.executable, '-c', launching], stdout=subprocess.PIPE, text=True
    )
    child = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    for _ in range(600):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError('it went on alone')
