# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What ``make test-compat`` runs, without the downloads."""

import importlib.util
import re
import sys

import pytest

from .conftest import ROOT


@pytest.fixture
def compat(monkeypatch, tmp_path):
    path = ROOT / 'tools' / 'dev' / 'compat.py'
    spec = importlib.util.spec_from_file_location('compat', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'HOME', tmp_path / 'environments')
    return module


def test_the_core_is_there(compat):
    for path in compat.CORE:
        assert (ROOT / path).exists()


def test_the_oldest_torch_is_the_one_that_is_promised(compat):
    promised = re.search(r"'torch>=([\d.]+)'", (ROOT / 'setup.py').read_text())
    tried = compat.ENVIRONMENTS['oldest'][0]
    assert re.fullmatch(rf'torch=={re.escape(promised[1])}(\.\d+)?', tried)


def test_an_environment_is_made_once_per_set_of_versions(compat, monkeypatch):
    commands = []

    def run(*command, **kwargs):
        (compat.HOME / 'some').mkdir(parents=True, exist_ok=True)
        commands.append(kwargs)

    monkeypatch.setattr(compat, 'run', run)
    for _ in range(2):
        compat.make('some', ('torch==1.0',))
        assert len(commands) == 2
    # Versions that are given stand alone; others are those of the lock.
    assert commands[1]['env']['PIP_CONSTRAINT'] == '/dev/null'
    compat.make('some', ('torch',))
    assert commands[3]['env']['PIP_CONSTRAINT'].endswith('lock.txt')


def test_a_python_without_wheels_is_named(compat, monkeypatch):
    monkeypatch.setitem(compat.NEWEST_PYTHON, 'oldest', (3, 5))
    with pytest.raises(SystemExit, match='"oldest" needs Python 3.5 or older'):
        compat.make('oldest', ())


def test_a_small_disk_is_noticed_first(compat, monkeypatch):
    monkeypatch.setattr(compat, 'NEEDED_GIB', 10**9)
    with pytest.raises(SystemExit, match='GiB of disk are needed'):
        compat.make('newest', ())


@pytest.mark.parametrize('broken', [False, True])
def test_failures_are_counted_and_passed_on(compat, tmp_path, broken, capfd):
    path = tmp_path / 'test_some.py'
    path.write_text(
        'import os, pytest\n'
        f'def test_a(): assert os.environ["PYTHONPATH"] == {str(ROOT)!r}\n'
        '@pytest.mark.skip(reason="needs PyTorch 9")\n'
        'def test_b(): pass\n'
        f'def test_c(): assert not {broken}\n'
    )
    passed, counts = compat.run_core(sys.executable, [str(path)])
    assert passed != broken
    assert counts == ('1 failed, 1 passed' if broken else '2 passed') + (
        ', 1 skipped'
    )
    assert 'needs PyTorch 9' in capfd.readouterr().out
