# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Trainings that are killed, or run out of disk, and go on.

Their end is compared, bit by bit, with that of a training nothing happened
to. Stochastic depth and augmentation draw random numbers meanwhile, and only
one checkpoint is kept.
"""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
import torch

from mmdat.checkpoints.loading import load_checkpoint_file

from .conftest import ROOT, run, tool

CONFIG = 'configs/classifier_dat_digits.py'
EPOCHS, BATCHES = 4, 5
OPTIONS = [
    '--cfg-options',
    f'train_cfg.max_epochs={EPOCHS}',
    'train_cfg.val_interval=1',
    'train_dataloader.batch_size=8',
    'model.backbone.drop_path_rate=0.2',
    'default_hooks.logger.interval=1',
    'randomness.deterministic=True',
]
ONE = 'default_hooks.checkpoint.max_keep_ckpts=1'
# How often training is killed at random moments; more of them in
# MMDAT_TEST_KILLS=20 pytest tests/test_tools/test_faults.py
KILLS = int(os.environ.get('MMDAT_TEST_KILLS', 2))


def arguments(digits, folder, *more):
    data = ['--work-dir', folder, '--data-root', f'{digits}/imagenet/']
    return [CONFIG, *data, '--resume', *OPTIONS, *more]


def start(command, **kwargs):
    """A process in a group of its own, with its output in a pipe."""
    environment = {**os.environ, 'PYTHON': sys.executable}
    environment |= dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    return subprocess.Popen(
        [str(c) for c in command],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **kwargs,
    )


def wait_for(process, text):
    """Reads what a process says until it says `text`, and returns it."""
    said = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return ''.join(said)
    raise AssertionError(''.join(said)[-4000:])


def end_of(folder, batches=BATCHES):
    """The state at the end: everything a training could have changed."""
    checkpoint = load_checkpoint_file(folder / f'epoch_{EPOCHS}.pth', 'cpu')
    history = checkpoint['message_hub']['log_scalars']
    state = dict(
        weights=checkpoint['state_dict'],
        moments=checkpoint['optimizer']['state'],
        schedule=[
            {k: v for k, v in one.items() if isinstance(v, int | float | list)}
            for one in checkpoint['param_schedulers']
        ],
    )
    assert len(state['schedule']) == 2
    for name in ('loss', 'grad_norm', 'lr'):
        values = torch.from_numpy(history[f'train/{name}'].data[0])
        assert len(values) == EPOCHS * batches
        state[name] = values
    return state


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.fixture(scope='module')
def undisturbed(digits, tmp_path_factory):
    """A work dir with all checkpoints of a training."""
    folder = tmp_path_factory.mktemp('undisturbed')
    tool('train.py', *arguments(digits, folder))
    return folder


@pytest.mark.slow
def test_killed_at_random_moments(undisturbed, digits, tmp_path):
    command = arguments(digits, tmp_path, ONE)
    moments = random.Random(KILLS)
    for _ in range(KILLS):
        victim = start([sys.executable, 'tools/train.py', *command])
        wait_for(victim, 'Checkpoints will be saved')
        list(islice(victim.stdout, moments.randrange(9 * EPOCHS)))
        time.sleep(moments.uniform(0, 0.1))
        os.killpg(victim.pid, signal.SIGKILL)
        victim.communicate(timeout=60)
    log = tool('train.py', *command)
    assert 'warning: ' not in log
    assert_same(end_of(tmp_path), end_of(undisturbed))


def limit_files(size):
    """For a child: to write beyond `size` bytes is an error, or deadly."""

    def limit():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


# Python ignores the signal of a file that grows beyond the limit. With this
# the kernel kills it there, in the middle of a write.
MORTAL = (
    'import runpy, signal, sys; sys.argv.pop(0); '
    'signal.signal(signal.SIGXFSZ, signal.SIG_DFL); '
    "runpy.run_path('tools/train.py', run_name='__main__')"
)


@pytest.mark.slow
def test_a_full_disk_and_a_kill_while_saving(undisturbed, digits, tmp_path):
    shutil.copy(undisturbed / 'epoch_2.pth', tmp_path)
    before = (tmp_path / 'epoch_2.pth').read_bytes()
    note = tmp_path / 'last_checkpoint'
    note.write_text(str(tmp_path / 'epoch_2.pth'))
    half = len(before) // 2
    command = arguments(digits, tmp_path, ONE)

    full = start(
        [sys.executable, 'tools/train.py', *command],
        preexec_fn=limit_files(half),
    )
    said, _ = full.communicate(timeout=240)
    assert full.returncode == 2, said[-4000:]
    assert 'Traceback' not in said
    assert 'resumed epoch: 2' in said and 'Saving checkpoint at 3' in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f'train: {tmp_path}/epoch_3.pth could not be')
    assert 'File too large' in last and 'make room' in last
    assert [p.name for p in tmp_path.glob('*.pth*')] == ['epoch_2.pth']
    assert note.read_text() == str(tmp_path / 'epoch_2.pth')

    killed = start(
        [sys.executable, '-c', MORTAL, 'tools/train.py', *command],
        preexec_fn=limit_files(half),
    )
    said, _ = killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGXFSZ, said[-4000:]
    assert 'Saving checkpoint at 3' in said
    part = tmp_path / 'epoch_3.pth.part'
    assert part.stat().st_size == half
    assert not (tmp_path / 'epoch_3.pth').exists()
    assert (tmp_path / 'epoch_2.pth').read_bytes() == before

    log = tool('train.py', *command)
    assert 'resumed epoch: 2' in log
    assert_same(end_of(tmp_path), end_of(undisturbed))
    assert [p.name for p in tmp_path.glob('*.pth*')] == ['epoch_4.pth']


def workers(parent):
    """The processes that torchrun started, by rank."""
    found = {}
    listed = subprocess.run(
        ['ps', '-o', 'pid=', '--ppid', str(parent)],
        capture_output=True,
        text=True,
    )
    for pid in map(int, listed.stdout.split()):
        with open(f'/proc/{pid}/environ') as file:
            rank = re.search(r'\0RANK=(\d+)\0', file.read())
        if rank:
            found[int(rank[1])] = pid
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


two_processes = pytest.mark.skipif(
    torch.cuda.is_available(), reason='tries two processes on the CPU'
)


def start_two_and_kill(rank, command):
    """The other process ends too, and torchrun says why."""
    launcher = start(command)
    try:
        wait_for(launcher, 'Saving checkpoint at 1 epochs')
        both = workers(launcher.pid)
        assert both.keys() == {0, 1}
        os.kill(both[rank], signal.SIGKILL)
        said, _ = launcher.communicate(timeout=240)
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode != 0
    assert f'local_rank: {rank}' in said and 'Signal 9 (SIGKILL)' in said
    assert not any(alive(pid) for pid in both.values())


@pytest.mark.slow
@two_processes
def test_the_first_of_two_processes_dies(digits, tmp_path):
    command = arguments(digits, tmp_path)
    start_two_and_kill(0, ['tools/dist_train.sh', CONFIG, 2, *command[1:]])


@pytest.mark.slow
@two_processes
def test_the_second_of_two_processes_dies(digits, tmp_path):
    ends = []
    for name in ('undisturbed', 'killed'):
        command = arguments(digits, tmp_path / name, ONE)
        command = ['tools/dist_train.sh', CONFIG, 2, *command[1:]]
        if name == 'killed':
            start_two_and_kill(1, command)
        log = run(*command)
        assert 'GPU number: 2' in log
        assert ('resumed epoch: ' in log) == (name == 'killed')
        ends.append(end_of(tmp_path / name, BATCHES - 2))
    assert_same(*ends)
