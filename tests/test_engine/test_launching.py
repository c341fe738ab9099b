# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Launchers without what they launch, who speaks, and how runs are refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict

from mmdat.engine import distributed as d
from mmdat.engine.preflight import _check_precision, _check_unused
from mmdat.models import DAT
from mmdat.utils import errors
from mmdat.utils.errors import UserError, one_sentence_errors

ROOT = Path(__file__).parents[2]
NAMES = [
    *('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    *('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST', 'SLURM_LOCALID'),
    *(name for group in d._MPI for name in group),
    'OMPI_COMM_WORLD_LOCAL_SIZE',
    'TORCHELASTIC_RUN_ID',
    errors.REFUSALS,
]


@pytest.fixture
def environment(monkeypatch):
    """An environment without anything of a launcher, to be filled."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    added = dict(os.environ)
    yield lambda **values: os.environ.update(values)
    for name in set(os.environ) - set(added):
        del os.environ[name]


@pytest.mark.parametrize(
    ('launcher', 'words'),
    [
        ('pytorch', 'RANK is not set; run tools/dist_train.sh'),
        ('slurm', 'SLURM_PROCID is not set; run tools/slurm_train.sh'),
        ('mpi', 'OMPI_COMM_WORLD_RANK is not set; run mpirun'),
    ],
)
def test_a_launcher_that_did_not_launch(launcher, words, environment):
    with pytest.raises(UserError, match=words) as caught:
        d.prepare_launch(Config({}), launcher)
    assert 'or leave out --launcher.' in str(caught.value)


def test_mpi_says_what_torch_asks_for(environment):
    environment(
        OMPI_COMM_WORLD_RANK='3',
        OMPI_COMM_WORLD_SIZE='4',
        OMPI_COMM_WORLD_LOCAL_RANK='1',
        OMPI_COMM_WORLD_LOCAL_SIZE='2',
    )
    with pytest.raises(UserError, match='MASTER_ADDR'):
        d._read_environment('mpi')
    environment(OMPI_COMM_WORLD_LOCAL_SIZE='4')
    d._read_environment('mpi')
    seen = [os.environ[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')]
    assert seen == ['3', '4', '1']
    assert os.environ['MASTER_ADDR'] == '127.0.0.1'
    assert d.number_of_processes('mpi') == 4


def test_slurm_without_scontrol(environment, monkeypatch):
    monkeypatch.setenv('PATH', '')
    environment(SLURM_PROCID='0', SLURM_NTASKS='2', SLURM_NODELIST='a[1-2]')
    with pytest.raises(UserError, match='set MASTER_ADDR'):
        d._read_environment('slurm')
    environment(MASTER_ADDR='a1')
    d._read_environment('slurm')
    assert os.environ['WORLD_SIZE'] == '2'


def test_the_first_of_all_or_of_a_machine_speaks(environment):
    assert errors.speaks() and errors.rank() == 0
    environment(SLURM_PROCID='2')
    assert not errors.speaks()
    environment(RANK='2', LOCAL_RANK='0')
    assert not errors.speaks()
    environment(TORCHELASTIC_RUN_ID='x')
    assert errors.speaks() and errors.rank() == 2


def test_a_refusal_is_left_to_the_launcher(environment, tmp_path, capsys):
    path = tmp_path / 'refusals'
    environment(**{errors.REFUSALS: str(path), 'RANK': '1'})
    with pytest.raises(SystemExit) as caught, one_sentence_errors('train'):
        raise UserError('so it is')
    assert caught.value.code == 2 and capsys.readouterr().err == ''
    assert json.loads(path.read_text()) == [1, 'train: so it is']


WORKER = """
import os, sys
sys.path.insert(0, {root!r})
from mmdat.utils.errors import UserError, one_sentence_errors
with one_sentence_errors('train'):
    if {refuses}:
        raise UserError('this is why')
    raise RuntimeError('a fault')
"""


@pytest.mark.parametrize('refuses', [True, False])
def test_the_sentence_is_the_last_thing_on_the_screen(refuses, tmp_path):
    script = tmp_path / 'worker.py'
    script.write_text(WORKER.format(root=str(ROOT), refuses=refuses))
    done = subprocess.run(
        [
            sys.executable,
            ROOT / 'tools/dist_run.py',
            *('-m', 'torch.distributed.run', '--standalone'),
            *('--nproc_per_node', '3', script),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    if refuses:
        assert done.returncode == 2
        assert said.strip().splitlines()[-1] == 'train: this is why'
        assert said.count('this is why') == 1 and 'Traceback' not in said
    else:
        assert done.returncode == 1 and 'ChildFailedError' in said


def test_an_interruption_has_no_traceback():
    code = (
        'import signal, time\n'
        'signal.signal(signal.SIGINT, signal.SIG_DFL)\n'
        'from mmdat.utils.errors import one_sentence_errors\n'
        'with one_sentence_errors("train"):\n'
        '    print("on", flush=True)\n'
        '    time.sleep(100)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'on\n'
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip() == (
        'train: interrupted; add --resume to continue from the last '
        'checkpoint.'
    )


def unused(model, **backbone):
    arch = dict(embed_dims=8, depths=1, num_heads=2)
    dat = DAT(arch, **backbone)
    channels = [dat.arch.stages[i].dim for i in dat.out_indices]
    cfg = Config(ConfigDict(model=model))
    try:
        _check_unused(cfg, dat, channels)
    except UserError as error:
        return str(error)
    return ''


def test_maps_that_get_no_gradient_are_told_of():
    said = unused(dict(neck=dict(type='FPN', start_level=1)))
    assert 'norm0 would get none' in said
    assert 'out_indices=(1, 2, 3), model.neck.in_channels=[16, 32, 64]' in said
    assert said.endswith('model.neck.start_level=0.')
    assert not unused(dict(neck=dict(type='FPN')))
    assert not unused(
        dict(neck=dict(type='FPN', start_level=1)), frozen_stages=1
    )
    said = unused(dict(neck=dict(type='GlobalAveragePooling')))
    assert 'out_indices=(3,)' in said
    said = unused(dict(neck=dict(type='FPN')), out_indices=(0, 1))
    assert 'find_unused_parameters=True' in said


def test_mixed_precision_of_a_config_on_a_cpu(monkeypatch):
    from mmengine.optim import AmpOptimWrapper

    from mmdat.engine import preflight

    monkeypatch.setattr(preflight, 'get_device', lambda: 'cpu')
    for kind in ('AmpOptimWrapper', AmpOptimWrapper):
        with pytest.raises(UserError, match='optim_wrapper.type=OptimWrap'):
            _check_precision(Config(dict(optim_wrapper=dict(type=kind))))
    _check_precision(Config(dict(optim_wrapper=dict(type='OptimWrapper'))))
    _check_precision(Config({}))
