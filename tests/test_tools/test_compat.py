# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What ``make test-compat`` runs, without the downloads."""

import importlib
import re
import sys

import pytest

from .conftest import ROOT


@pytest.fixture
def compat(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'dev')
    module = importlib.import_module('compat')
    monkeypatch.setattr(module, 'HOME', tmp_path / 'environments')
    return module


@pytest.fixture
def commands(compat, monkeypatch):
    """What would be run; the environment's folder is made."""
    found = []

    def run(*command, **kwargs):
        (compat.HOME / 'some').mkdir(parents=True, exist_ok=True)
        found.append((' '.join(map(str, command)), kwargs.get('env', {})))

    monkeypatch.setattr(compat, 'run', run)
    monkeypatch.setattr(compat, 'pip', run)
    monkeypatch.setattr(compat, 'mend_opencv', lambda *_: None)
    monkeypatch.setattr(compat, 'ask', lambda *_: '')
    monkeypatch.setattr(compat, 'mmcv_wheel', lambda _, line: f'{line}.whl')
    return found


def test_the_core_is_there(compat):
    for path in compat.CORE:
        assert (ROOT / path).exists()


def test_the_oldest_torch_is_the_one_that_is_promised(compat):
    promised = re.search(r"'torch>=([\d.]+)'", (ROOT / 'setup.py').read_text())
    tried = compat.ENVIRONMENTS['oldest'].needs[0]
    assert re.fullmatch(rf'torch=={re.escape(promised[1])}(\.\d+)?', tried)


def test_an_environment_is_made_once_per_set_of_versions(compat, commands):
    wanted = compat.Environment(('torch==1.0',))
    for _ in range(2):
        compat.make('some', wanted)
        assert len(commands) == 2
    # Versions that are given stand alone; others are those of the lock.
    assert commands[1][1]['PIP_CONSTRAINT'] == '/dev/null'
    compat.make('some', compat.Environment(('torch',), 'lock.txt'))
    assert commands[3][1]['PIP_CONSTRAINT'].endswith('lock.txt')


@pytest.mark.parametrize(
    ('lock', 'mmcv', 'others'),
    [
        (
            'lock.txt',
            'onedl-mmcv==2.3.6',
            'onedl-mmdetection==3.5.1 onedl-mmpretrain==1.3.6 '
            'onedl-mmsegmentation==1.4.2',
        ),
        (
            'official.txt',
            'mmcv==2.1.0',
            'mmdet==3.3.0 mmpretrain==1.2.0 mmsegmentation==1.2.2',
        ),
    ],
)
def test_a_whole_stack_has_its_mmcv_compiled(
    compat, commands, lock, mmcv, others
):
    """After torch, and before the packages that look at it."""
    wanted = compat.Environment(lock=lock, extra=('more==1',), gib=0)
    assert wanted.tests == ('tests',)
    compat.make('some', wanted)
    said = [command for command, _ in commands]
    assert ' -r ' in said[1]
    assert said[2].endswith(f' {mmcv}.whl')
    assert said[3].endswith(f'--no-build-isolation {others}')
    assert said[4].endswith('--no-deps more==1')


def test_the_official_stack_is_the_one_that_is_written_down(compat):
    lock = (ROOT / 'requirements' / 'official.txt').read_text()
    page = (ROOT / 'docs' / 'get_started.md').read_text()
    heads = re.search(r'^\| name \|.*$', page, re.MULTILINE)[0].split('|')
    row = re.search(r'^\| `official` \|.*$', page, re.MULTILINE)[0].split('|')
    written = ' '.join(f'{a} {b}' for a, b in zip(heads, row, strict=True))
    names = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation')
    for name in (*names, 'mmpretrain', 'numpy'):
        version = re.search(rf'^{name}==(\S+)', lock, re.MULTILINE)[1]
        assert re.search(rf'\b{name}\b.* {re.escape(version)}\b', written), (
            name
        )
    assert 'onedl' not in lock


def test_a_python_without_wheels_is_named(compat):
    wanted = compat.Environment(('torch',), newest_python=(3, 5))
    with pytest.raises(SystemExit, match='"some" needs Python 3.5 or older'):
        compat.make('some', wanted)


def test_a_small_disk_is_noticed_first(compat):
    with pytest.raises(SystemExit, match='GiB of disk are needed'):
        compat.make('some', compat.Environment(('torch',), gib=10**9))


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
    passed, counts = compat.run_tests(sys.executable, [str(path)])
    assert passed != broken
    assert counts == ('1 failed, 1 passed' if broken else '2 passed') + (
        ', 1 skipped'
    )
    assert 'needs PyTorch 9' in capfd.readouterr().out
