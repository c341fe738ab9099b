# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The parts of the set-up that can go wrong on somebody's machine."""

import importlib
import json
import sys

import pytest

from .conftest import ROOT


@pytest.fixture
def bootstrap(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'dev')
    module = importlib.import_module('bootstrap')
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
    version = bootstrap.ask(
        bootstrap.PYTHON, 'import pip, sys; print(sys.version)'
    )
    assert version == sys.version.replace('\r', '')
