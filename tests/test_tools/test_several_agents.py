# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Two agents of torchrun, other numbers of processes, and restarts."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
from versions import needs_torch

from mmdat.checkpoints.loading import load_checkpoint_file

from .conftest import ROOT, run, tool

CONFIG = 'configs/classifier_dat_digits.py'


def arguments(digits, work, epochs, *more):
    return [
        *(CONFIG, '--work-dir', work, '--data-root', f'{digits}/imagenet/'),
        *more,
        *('--cfg-options', f'train_cfg.max_epochs={epochs}'),
        *('train_cfg.val_interval=9', 'train_dataloader.batch_size=10'),
        'param_scheduler.0.end=2',
    ]


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def listens(port):
    try:
        socket.create_connection(('127.0.0.1', int(port))).close()
    except OSError:
        return False
    return True


def agent(processes, command, log, **env):
    environment = {
        **os.environ,
        **dict(PYTHON=sys.executable, PYTHONPATH=str(ROOT)),
        **dict(OMP_NUM_THREADS='1', MASTER_ADDR='127.0.0.1'),
        **env,
    }
    with open(log, 'w') as file:
        return subprocess.Popen(
            ['tools/dist_train.sh', command[0], str(processes)]
            + [str(c) for c in command[1:]],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_two_agents_and_then_one_process(digits, tmp_path):
    work, port = tmp_path / 'work', free_port()
    agents = [
        agent(
            1,
            arguments(digits, work, 1),
            tmp_path / f'{rank}.txt',
            NNODES='2',
            NODE_RANK=str(rank),
            PORT=port,
        )
        for rank in (0, 1)
    ]
    try:
        codes = [one.wait(timeout=400) for one in agents]
    finally:
        for one in agents:
            stop(one)
    said = (tmp_path / '0.txt').read_text()
    assert codes == [0, 0], said[-3000:]
    assert 'GPU number: 2' in said
    two = load_checkpoint_file(work / 'epoch_1.pth')

    said = tool('train.py', *arguments(digits, work, 2, '--resume'))
    assert 'resumed epoch: 1' in said and 'GPU number: 1' in said
    one = load_checkpoint_file(work / 'epoch_2.pth')
    # 40 pictures of each of 10 classes at most, 10 in each process.
    steps = [c['message_hub']['runtime_info']['iter'] + 1 for c in (two, one)]
    assert steps[1] - steps[0] == 2 * steps[0] > 0


@pytest.mark.slow
def test_a_worker_that_dies_starts_again(digits, tmp_path):
    work, log = tmp_path / 'work', tmp_path / 'log.txt'
    command = arguments(digits, work, 4, '--resume')
    process = agent(2, command, log, MAX_RESTARTS='2', PORT=free_port())
    try:
        while not (work / 'epoch_1.pth').is_file():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if any('train.py' in word for word in child.cmdline())
            and child.environ().get('RANK') == '1'
        ]
        workers[0].kill()
        code = process.wait(timeout=500)
    finally:
        stop(process)
    said = log.read_text()
    assert code == 0, said[-3000:]
    assert 'resumed epoch: ' in said
    assert (work / 'epoch_4.pth').is_file()


@pytest.mark.long
def test_an_agent_that_dies_is_replaced(digits, tmp_path):
    """The second of two machines is gone, and another takes its place."""
    work, port = tmp_path / 'work', free_port()

    def start(rank, log):
        return agent(
            1,
            arguments(digits, work, 4, '--resume'),
            tmp_path / f'{log}.txt',
            **dict(NNODES='2', NODE_RANK=str(rank), PORT=port),
            MAX_RESTARTS='2',
        )

    agents = [start(0, 'first')]
    try:
        while not listens(port):  # the first has the meeting place
            assert agents[0].poll() is None
            time.sleep(0.1)
        agents.append(start(1, 'second'))
        while not (work / 'epoch_1.pth').is_file():
            assert all(one.poll() is None for one in agents)
            time.sleep(0.05)
        stop(agents.pop())
        agents.append(start(1, 'third'))
        codes = [one.wait(timeout=400) for one in agents]
    finally:
        for one in agents:
            stop(one)
    said = (tmp_path / 'first.txt').read_text()
    assert codes == [0, 0], said[-3000:]
    assert 'resumed epoch: ' in said
    assert (work / 'epoch_4.pth').is_file()


def test_restarts_are_said_to_torchrun(tmp_path):
    echo = tmp_path / 'echo'
    echo.write_text('#!/bin/bash\necho "$@"\n')
    echo.chmod(0o755)
    env = dict(PYTHON=str(echo), MAX_RESTARTS='3')
    said = run('tools/dist_train.sh', 'c.py', 8, env=env)
    assert '--standalone --max_restarts 3' in said
    env.update(NNODES='2', MASTER_ADDR='10.0.0.7', PORT='4711')
    said = run('tools/dist_train.sh', 'c.py', 8, env=env)
    assert '--rdzv_backend c10d --rdzv_id mmdat' in said
    assert '--rdzv_endpoint 10.0.0.7:4711 --max_restarts 3' in said


@needs_torch('2.6')
@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason='for the CPU')
def test_shards_by_the_command(digits, tmp_path):
    work = tmp_path / 'work'
    command = [
        *arguments(digits, work, 1),
        'strategy.type=FSDP2Strategy',
    ]
    process = agent(2, command, tmp_path / 'log.txt')
    try:
        code = process.wait(timeout=400)
    finally:
        stop(process)
    assert code == 0, (tmp_path / 'log.txt').read_text()[-3000:]
    said = tool(
        'test.py',
        *(CONFIG, work / 'epoch_1.pth', '--work-dir', tmp_path / 'test'),
        *('--data-root', f'{digits}/imagenet/'),
    )
    assert 'accuracy/top1' in said
