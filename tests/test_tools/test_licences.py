# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Which licences are allowed, and that what is installed has no other."""

import importlib.util

import pytest

from .conftest import ROOT


@pytest.fixture
def licences():
    path = ROOT / 'tools' / 'dev' / 'licences.py'
    spec = importlib.util.spec_from_file_location('licences', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('licence', 'verdict'),
    [
        ('MIT', ('permissive', 'MIT')),
        ('MIT License', ('permissive', 'MIT')),
        ('Apache-2.0 OR BSD-2-Clause', ('permissive', 'Apache-2.0')),
        ('BSD AND Apache-2.0 WITH LLVM-exception', 'permissive'),
        ('MPL-2.0 AND MIT', ('noted', 'MPL-2.0 AND MIT')),
        ('GNU Lesser General Public License v3 (LGPLv3)', ('noted', 'LGPL')),
        ('LicenseRef-NVIDIA-Proprietary', ('noted', 'NVIDIA')),
        ('GPL-3.0-or-later OR MIT', ('permissive', 'MIT')),
        ('GPL-3.0-or-later', (None, 'GPL')),
        ('GNU General Public License v2 or later (GPLv2+)', (None, 'GPL')),
        ('GNU Affero General Public License v3', (None, 'AGPL')),
        ('MIT AND AGPL-3.0-only', (None, 'MIT AND AGPL')),
        ('(MIT OR GPL-2.0) AND AGPL-3.0-only', (None, 'MIT AND GPL AND AGPL')),
        ('MIT AND Something-New', (None, '')),
        ('All rights reserved', (None, '')),
        ('', (None, '')),
    ],
)
def test_which_licences_are_allowed(licences, licence, verdict):
    found = licences.judge(licence)
    assert (found[0] if isinstance(verdict, str) else found) == verdict


def test_all_locked_packages_have_one_that_is_allowed(licences):
    table = licences.rows(licences.locked())
    bad = [row for row in table if row[3] in ('unknown', 'not allowed')]
    assert not bad
    there = {row[0]: row[1] for row in table if row[3] != 'not installed'}
    lock = licences.LOCK.read_text()
    if f'\ntorch=={there["torch"].partition("+")[0]}\n' not in lock:
        pytest.skip('the packages that are installed are not the locked ones')
    assert len(there) >= 60, table


@pytest.mark.parametrize(
    ('metadata', 'verdict'),
    [
        ('License-Expression: GPL-3.0-only', 'GPL not allowed'),
        (
            'Classifier: License :: OSI Approved :: GNU Affero General Public '
            'License v3',
            'AGPL not allowed',
        ),
        ('License: none of your business', 'unknown'),
        ('Summary: no licence', 'unknown'),
    ],
)
def test_one_that_is_not_is_named(
    licences, monkeypatch, tmp_path, capsys, metadata, verdict
):
    folder = tmp_path / 'newcomer-1.0.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text(
        f'Metadata-Version: 2.4\nName: newcomer\nVersion: 1.0\n{metadata}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    lock = tmp_path / 'lock.txt'
    lock.write_text(
        'newcomer==1.0\n    # via nobody\npytest==9.2.0\n'
        "elsewhere==1 ; sys_platform == 'nowhere'\n"
    )
    monkeypatch.setattr(licences, 'LOCK', lock)
    assert licences.main() == 1
    out, err = capsys.readouterr()
    assert ' '.join(out.splitlines()[0].split()).endswith(verdict)
    assert 'pytest' in out and 'elsewhere' not in out
    assert 'licences: newcomer may not be used' in err
