# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The parts of the set-up that can go wrong on somebody's machine."""

import importlib.util
import json
import sys

import pytest

from .conftest import ROOT


@pytest.fixture
def bootstrap(monkeypatch, tmp_path):
    path = ROOT / 'tools' / 'dev' / 'bootstrap.py'
    spec = importlib.util.spec_from_file_location('bootstrap', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / '.venv'
    monkeypatch.setattr(module, 'VENV', venv)
    monkeypatch.setattr(module, 'PYTHON', venv / 'bin' / 'python')
    monkeypatch.setattr(module, 'STAMP', venv / 'stamp.json')
    return module


def test_the_lock_holds_exact_versions_of_all_that_is_asked_for(bootstrap):
    locked = bootstrap.locked()
    assert all('==' in line for line in locked.values())
    names = {line.split('==')[0] for line in locked.values()}
    wanted = {
        line.split('=')[0].split('<')[0].strip()
        for line in (ROOT / 'requirements/lock.in').read_text().splitlines()
        if line and not line.startswith('#')
    }
    assert wanted and wanted <= names


def test_other_pythons_are_refused(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, 'OLDEST', (4, 0))
    with pytest.raises(SystemExit, match='Python 4.0 to .*PYTHON=python3.11'):
        bootstrap.check_machine()


def test_a_small_disk_is_noticed_first(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, 'NEEDED_GIB', 10**9)
    with pytest.raises(SystemExit, match='of disk are needed'):
        bootstrap.check_machine()


def test_a_missing_compiler_is_named(bootstrap, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(SystemExit, match='no no-such-compiler; install a C'):
        bootstrap.check_compiler()


def test_a_finished_set_up_is_recognised(bootstrap):
    assert not bootstrap.is_complete()
    bootstrap.PYTHON.parent.mkdir(parents=True)
    bootstrap.PYTHON.touch()
    stamp = {'fingerprint': bootstrap.fingerprint()}
    bootstrap.STAMP.write_text(json.dumps(stamp))
    assert bootstrap.is_complete()
    bootstrap.STAMP.write_text(json.dumps({'fingerprint': 'another lock'}))
    assert not bootstrap.is_complete()
    bootstrap.STAMP.write_text('{"fing')
    assert not bootstrap.is_complete()


def test_a_half_made_environment_is_made_anew(bootstrap):
    bootstrap.PYTHON.parent.mkdir(parents=True)
    bootstrap.PYTHON.write_text('#!/bin/sh\nexit 1\n')
    bootstrap.PYTHON.chmod(0o755)
    bootstrap.make_venv()
    version = bootstrap.ask('import pip, sys; print(sys.version)')
    assert version == sys.version.replace('\r', '')


def test_a_failing_command_says_what_to_do(bootstrap):
    with pytest.raises(SystemExit, match='status 3.*what is done is kept'):
        bootstrap.run(sys.executable, '-c', 'raise SystemExit(3)')


def test_the_wheel_is_kept_per_torch_and_python(bootstrap, monkeypatch):
    answers = {'torch.__version__': '2.11.0+cu130', 'CUDA_HOME': 'False'}

    def ask(code):
        return next(a for key, a in answers.items() if key in code)

    monkeypatch.setattr(bootstrap, 'ask', ask)
    monkeypatch.setenv('MMDAT_CACHE', '/cache')
    folder = bootstrap.cache_folder()
    assert folder.parent.as_posix() == '/cache/mmcv'
    tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    assert folder.name.endswith(f'-torch2.11.0-cu130-{tag}-cpu')


def test_an_interrupted_build_leaves_no_wheel(
    bootstrap, monkeypatch, tmp_path
):
    """A build that fails says where its log is; `out` stays empty."""
    source = tmp_path / 'src'
    source.mkdir()
    (source / 'setup.py').write_text('raise SystemExit("broken")\n')
    monkeypatch.setattr(bootstrap, 'PYTHON', sys.executable)
    monkeypatch.setattr(bootstrap, 'builds_for_cuda', lambda: False)
    with pytest.raises(SystemExit, match=f'{tmp_path}/build.log says why'):
        bootstrap.build_mmcv(tmp_path)
    assert bootstrap.find_wheel(tmp_path) is None
    assert (source / 'setup.py').exists()
