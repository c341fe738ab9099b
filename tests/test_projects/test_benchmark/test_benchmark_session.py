# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Measuring in processes of their own; nothing here asks how fast."""

import io
import os
import runpy
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
import torch
from cases import Case, Conditions, Setting, Subject, backbone_groups
from rich.console import Console
from worker import CLEAR_REFS, Rules, Worker, describe, measure

from .conftest import PROJECT

MODELS = """
import os
import signal
import time

import torch
from torch import nn


class Base(nn.Module):
    passes = 0

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        torch.ones(150_000_000)  # 600 MB that are gone before the passes

    def forward(self, x):
        Base.passes += 1
        return [self.conv(x), dict(more=self.conv(x))]


class Allocates(Base):  # 300 MB
    def forward(self, x):
        torch.ones(75_000_000)
        return super().forward(x)


class NeedsTooMuch(Base):  # 4 GB, of which nothing is touched
    def forward(self, x):
        torch.empty(1_000_000_000)
        return super().forward(x)


class IsKilled(Base):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGKILL)


class Fails(Base):
    def forward(self, x):
        if self.passes == 1:
            raise ValueError('no second pass\\nmore')
        return super().forward(x)


class Hangs(Base):
    def forward(self, x):
        if self.passes == 1:
            print('hangs', flush=True)
            time.sleep(1000)
        return super().forward(x)


class Writes(Base):
    def forward(self, x):
        with open(TURNS, 'a') as file:
            print(os.getpid(), self.training, torch.is_grad_enabled(),
                  torch.get_num_threads(), self.conv(x).dtype, file=file)
        return super().forward(x)
"""


SESSION = """
import sys
from pathlib import Path

sys.path.insert(0, '{project}')
from cases import *
from worker import Rules, Worker

if __name__ == '__main__':
    subject = Subject('Hangs', factory='{file}:Hangs')
    case = Case(subject, Setting('inference', 1, 16, 16), Conditions())
    worker = Worker(case, Rules(1, None, Path(sys.argv[1])))
    print(worker._process.pid, flush=True)
    worker.prepare()  # never done: it hangs when it is timed
"""


@pytest.fixture
def models(tmp_path):
    """Makes a case of a class above."""
    file = tmp_path / 'models.py'
    file.write_text(f'TURNS = {str(tmp_path / "turns")!r}\n{MODELS}')

    def case(name, label=None, mode='inference', **conditions):
        subject = Subject(label or name, factory=f'{file}:{name}')
        conditions = Conditions(min_seconds=0, threads=1, **conditions)
        return Case(subject, Setting(mode, 1, 16, 16), conditions)

    return case


def rules(tmp_path, rounds=1):
    return Rules(rounds, None, tmp_path / 'log')


@pytest.mark.slow
def test_those_who_break_off_do_not_stop_the_others(models, tmp_path):
    ours = np.ones(100_000_000)  # 800 MB of the parent
    cases = [
        models(name, memory_limit=2 * 10**9)
        for name in ('NeedsTooMuch', 'IsKilled', 'Fails', 'Allocates')
    ]
    ticks = []
    results = measure(cases, rules(tmp_path, rounds=2), ticks.append)
    assert ours.all()
    assert [result.status for result in results] == [
        'out of memory',
        'out of memory',
        'failed: ValueError: no second pass',
        'ok',
    ]
    assert [len(result.seconds) for result in results] == [0, 0, 0, 2]
    assert results[-1].parameters == 4 * 3 * 9 + 4
    assert len(ticks) == 4 * 3
    assert 'no second pass' in (tmp_path / 'log').read_text()
    if not os.access(CLEAR_REFS, os.W_OK):
        assert results[-1].memory is None
        assert results[-1].memory_source.startswith('not measured')
        return
    # The 300 MB of a pass, and not what parent and building took.
    assert results[-1].memory_source == 'resident (VmHWM)'
    assert 290e6 < results[-1].memory < 330e6


def test_a_round_that_takes_too_long_is_given_up(models, tmp_path):
    worker = Worker(models('Hangs'), rules(tmp_path))
    try:
        worker.prepare()
        assert worker.works
        worker.timeout = 0.5
        worker.run()
        assert worker.result.status == 'timed out after 0.5 s'
        assert not worker.result.seconds
    finally:
        worker.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl of Linux')
def test_no_process_outlives_its_session(models, tmp_path):
    """Also when that is killed while a pass is running."""
    models('Hangs')
    script = tmp_path / 'session.py'
    script.write_text(
        SESSION.format(file=tmp_path / 'models.py', project=PROJECT)
    )
    log = tmp_path / 'log'
    with subprocess.Popen(
        [sys.executable, script, log], stdout=subprocess.PIPE, text=True
    ) as session:
        child = psutil.Process(int(session.stdout.readline()))
        while 'hangs' not in (log.read_text() if log.exists() else ''):
            assert session.poll() is None and child.is_running()
            time.sleep(0.1)
        session.kill()
    with suppress(psutil.NoSuchProcess):
        child.wait(timeout=30)  # raises TimeoutExpired if it goes on


@pytest.mark.slow
def test_processes_take_turns(models, tmp_path):
    cases = [models('Writes', 'a'), models('Writes', 'b', 'train', amp='bf16')]
    results = measure(cases, rules(tmp_path, rounds=3), print)
    assert [len(result.seconds) for result in results] == [3, 3]
    lines = (tmp_path / 'turns').read_text().splitlines()
    processes, *states = zip(*map(str.split, lines))
    a, b = processes[0], processes[-1]
    assert a != b and str(os.getpid()) not in processes
    # each weighed once before the rounds, then one pass in each round
    assert list(processes) == [a, b] * 4
    # training, with gradients, threads, precision of the result
    assert {*zip(*states)} == {
        ('False', 'False', '1', 'torch.float32'),
        ('True', 'True', '1', 'torch.bfloat16'),
    }


def test_missing_peers_are_reported_and_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr('subjects.find_spec', lambda name: None)
    monkeypatch.setattr(
        'worker.Worker',
        lambda *_: pytest.fail('a process was started'),
    )
    groups = backbone_groups(['swin_t', 'resnet50'], [(8, 8)])
    screen = io.StringIO()
    rows = runpy.run_path(PROJECT / 'run.py')['run'](
        groups, Conditions(), [], rules(tmp_path), Console(file=screen)
    )
    assert [row['status'] for row in rows] == [
        'skipped: mmcv is not installed'
    ] * 2
    assert screen.getvalue().count('mmcv is not installed') == 2
    assert (tmp_path / 'benchmark.csv').read_text().count('skipped') == 2


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (MemoryError(), 'out of memory'),
        (torch.cuda.OutOfMemoryError('CUDA'), 'out of memory'),
        (RuntimeError("x: can't allocate memory: 1 byte"), 'out of memory'),
        (RuntimeError('std::bad_alloc'), 'out of memory'),
        (ImportError('no x\ny'), 'skipped: no x'),
        (RuntimeError('a memory\nb'), 'failed: RuntimeError: a memory'),
        (ValueError(), 'failed: ValueError: '),
    ],
)
def test_what_is_written_in_place_of_numbers(error, status):
    assert describe(error) == status
