# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compiling mmcv for an environment, without compiling it."""

import importlib
import sys
from pathlib import Path

import pytest

from .conftest import ROOT


@pytest.fixture
def dev(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'dev')
    return importlib.import_module


@pytest.fixture
def mmcv_wheel(dev):
    return dev('mmcv_wheel')


def test_a_failing_command_says_what_to_do(dev):
    with pytest.raises(SystemExit, match='status 3.*finished steps are kept'):
        dev('commands').run(sys.executable, '-c', 'raise SystemExit(3)')


def test_an_environment_that_does_not_work_is_named(dev):
    with pytest.raises(SystemExit, match=f'{sys.executable} does not work'):
        dev('commands').ask(sys.executable, 'import no_such')


def test_a_missing_compiler_is_named(mmcv_wheel, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(SystemExit, match='no no-such-compiler; install a C'):
        mmcv_wheel.check_compiler()


@pytest.mark.parametrize(
    ('requirement', 'start'),
    [
        ('onedl-mmcv==2.3.6', 'onedl_mmcv-2.3.6'),
        ('mmcv==2.1.0', 'mmcv-2.1.0'),
    ],
)
def test_the_wheel_is_kept_per_torch_and_python(
    mmcv_wheel, monkeypatch, requirement, start
):
    answers = {'torch.__version__': '2.11.0+cu130', 'CUDA_HOME': 'False'}

    def ask(python, code):
        return next(a for key, a in answers.items() if key in code)

    monkeypatch.setattr(mmcv_wheel, 'ask', ask)
    monkeypatch.setenv('MMDAT_CACHE', '/cache')
    folder = mmcv_wheel.cache_folder(Path('python'), requirement)
    assert folder.parent.as_posix() == '/cache/mmcv'
    tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    assert folder.name == f'{start}-torch2.11.0-cu130-{tag}-cpu'


def test_a_wheel_that_is_there_is_taken(mmcv_wheel, monkeypatch, tmp_path):
    out = tmp_path / 'out'
    monkeypatch.setattr(mmcv_wheel, 'cache_folder', lambda *_: tmp_path)
    monkeypatch.setattr(
        mmcv_wheel, 'build', lambda *_: (out.mkdir(), made.touch())
    )
    made = out / 'mmcv-2.1.0-cp311.whl'
    for _ in range(2):  # the second time `mkdir` would fail
        assert mmcv_wheel.mmcv_wheel(sys.executable, 'mmcv==2.1.0') == made


def test_an_interrupted_build_leaves_no_wheel(
    mmcv_wheel, monkeypatch, tmp_path
):
    """A build that fails says where its log is; `out` stays empty."""
    source = tmp_path / 'src'
    source.mkdir()
    (source / 'setup.py').write_text('raise SystemExit("broken")\n')
    monkeypatch.setattr(mmcv_wheel, 'builds_for_cuda', lambda _: False)
    with pytest.raises(SystemExit, match=f'{tmp_path}/build.log says why'):
        mmcv_wheel.build(tmp_path, sys.executable, 'mmcv==2.1.0')
    assert mmcv_wheel.find_wheel(tmp_path) is None
    assert (source / 'setup.py').exists()
