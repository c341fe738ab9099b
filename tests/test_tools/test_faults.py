# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Trainings that are killed, or run out of disk, and go on.

Their end is compared, bit by bit, with that of a training nothing happened
to. Stochastic depth and augmentation draw random numbers meanwhile, and only
one checkpoint is kept.
"""

import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mmdat.checkpoints.loading import load_checkpoint_file

from .conftest import ROOT, run

CONFIG = 'configs/classifier_dat_digits.py'
EPOCHS, BATCHES = 4, 5
OPTIONS = [
    '--cfg-options',
    f'train_cfg.max_epochs={EPOCHS}',
    'train_cfg.val_interval=1',
    'train_dataloader.batch_size=8',
    'model.backbone.drop_path_rate=0.2',
    'default_hooks.logger.interval=1',
    'param_scheduler.0.end=10',
    'randomness.deterministic=True',
]
ONE = 'default_hooks.checkpoint.max_keep_ckpts=1'
# How often training is killed at random moments; more of them in
# MMDAT_TEST_KILLS=20 pytest tests/test_tools/test_faults.py
KILLS = int(os.environ.get('MMDAT_TEST_KILLS', 1))


def arguments(digits, folder, *more):
    data = ['--work-dir', folder, '--data-root', f'{digits}/imagenet/']
    return [CONFIG, *data, '--resume', *OPTIONS, *more]


# Trainings start from a process that has imported everything, in a second.
forks = multiprocessing.get_context('forkserver')
forks.set_forkserver_preload(
    [
        'mmdat.engine.preflight',
        'mmengine.runner',
        *(
            f'mmpretrain.{part}'
            for part in ('datasets', 'engine', 'evaluation', 'models')
        ),
    ]
)


def tools_train(arguments, log, file_size=None, mortal=False):
    """tools/train.py, in a process of its own.

    To write beyond `file_size` bytes of a file is an error; if it is mortal
    the kernel kills it there, in the middle of a write.
    """
    with open(log, 'w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    os.chdir(ROOT)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        action = signal.SIG_DFL if mortal else signal.SIG_IGN
        signal.signal(signal.SIGXFSZ, action)
    sys.argv = ['tools/train.py', *map(str, arguments)]
    runpy.run_path(sys.argv[0], run_name='__main__')


def start(folder, *args, **kwargs):
    """Starts tools/train.py; its output goes to a file."""
    log = folder / 'output.txt'
    log.write_text('')
    process = forks.Process(
        target=tools_train, args=(args, log), kwargs=kwargs, daemon=True
    )
    process.start()
    return process, log


def finish(process, log):
    """Its exit code, and what it said."""
    process.join(timeout=400)
    return process.exitcode, log.read_text()


def train(folder, *args):
    """Runs tools/train.py to its end; returns what it said."""
    code, said = finish(*start(folder, *args))
    assert code == 0, said[-4000:]
    return said


def wait_for_lines(process, log, text, more):
    """Until it says `text` and so many lines after that, or ends."""
    while process.is_alive():
        _, found, rest = log.read_text().partition(text)
        if found and rest.count('\n') > more:
            return
        time.sleep(0.01)


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
    train(folder, *arguments(digits, folder))
    return folder


@pytest.mark.slow
def test_killed_at_random_moments(undisturbed, digits, tmp_path):
    moments, kills, trainings = random.Random(KILLS), 0, 0
    code = None
    while kills < KILLS or code != 0:
        folder = tmp_path / str(trainings)
        folder.mkdir(exist_ok=True)
        victim, log = start(folder, *arguments(digits, folder, ONE))
        if kills < KILLS:
            more = moments.randrange(12)  # an epoch says nine
            wait_for_lines(victim, log, 'Checkpoints will be saved', more)
            time.sleep(moments.uniform(0, 0.1))
            victim.kill()
        code, said = finish(victim, log)
        assert code in (0, -signal.SIGKILL), said[-4000:]
        told = [x for x in said.splitlines() if x.startswith('warning: ')]
        # The schedule is for more epochs.
        assert all('param_scheduler' in x for x in told), told
        kills += code != 0
        if code == 0:
            assert_same(end_of(folder), end_of(undisturbed))
            trainings += 1


@pytest.mark.slow
def test_a_full_disk_and_a_kill_while_saving(undisturbed, digits, tmp_path):
    shutil.copy(undisturbed / 'epoch_2.pth', tmp_path)
    before = (tmp_path / 'epoch_2.pth').read_bytes()
    note = tmp_path / 'last_checkpoint'
    note.write_text(str(tmp_path / 'epoch_2.pth'))
    half = len(before) // 2
    command = arguments(digits, tmp_path, ONE)

    code, said = finish(*start(tmp_path, *command, file_size=half))
    assert code == 2, said[-4000:]
    assert 'Traceback' not in said
    assert 'resumed epoch: 2' in said and 'Saving checkpoint at 3' in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f'train: {tmp_path}/epoch_3.pth could not be')
    assert 'File too large' in last and 'free disk space' in last
    assert [p.name for p in tmp_path.glob('*.pth*')] == ['epoch_2.pth']
    assert note.read_text() == str(tmp_path / 'epoch_2.pth')

    killed = start(tmp_path, *command, file_size=half, mortal=True)
    code, said = finish(*killed)
    assert code == -signal.SIGXFSZ, said[-4000:]
    assert 'Saving checkpoint at 3' in said
    part = tmp_path / 'epoch_3.pth.part'
    assert part.stat().st_size == half
    assert not (tmp_path / 'epoch_3.pth').exists()
    assert (tmp_path / 'epoch_2.pth').read_bytes() == before

    assert 'resumed epoch: 2' in train(tmp_path, *command)
    assert_same(end_of(tmp_path), end_of(undisturbed))
    names = {p.name for p in tmp_path.glob('*.pth*')}
    best = {name for name in names if name.startswith('best_accuracy_top1_')}
    assert names - best == {'epoch_4.pth'} and len(best) <= 1


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
    environment = {**os.environ, 'PYTHON': sys.executable}
    environment |= dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    launcher = subprocess.Popen(
        [str(c) for c in command],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        # Then the checkpoint of the first epoch is there.
        saving = 'Saving checkpoint at 2 epochs'
        assert any(saving in line for line in launcher.stdout)
        both = workers(launcher.pid)
        assert both.keys() == {0, 1}
        os.kill(both[rank], signal.SIGKILL)
        said, _ = launcher.communicate(timeout=240)
    finally:
        if launcher.poll() is None:  # nothing may outlive a failed test
            for pid in (*workers(launcher.pid).values(), launcher.pid):
                os.kill(pid, signal.SIGKILL)
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
