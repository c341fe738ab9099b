# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Packages that do not go together: said in a sentence, before the work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdat.utils import packages
from mmdat.utils.errors import UserError
from mmdat.utils.packages import DISTRIBUTIONS, check_package, mixture

ROOT = Path(__file__).parents[2]
REFUSES = (
    'import mmcv\n'
    "assert mmcv.__version__ < '2.2.0', \\\n"
    "    f'MMCV=={mmcv.__version__} is used but incompatible.'\n"
)


def module(folder, name, text='', version='1.0', distribution=None):
    """A package with its metadata, which comes before an installed one."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / '__init__.py').write_text(
        f'__version__ = {version!r}\n{text}'
    )
    distribute(folder, distribution or name, version)


def distribute(folder, name, version='1.0'):
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    )


def python(folder, *command):
    """Runs Python where the packages of a folder come first."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, 'PYTHONPATH': f'{folder}{os.pathsep}{ROOT}'},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def refusal(folder, scope='mmdet'):
    """The sentence that check_package ends with."""
    code = (
        'from mmdat.utils import packages\n'
        'from mmdat.utils.errors import one_sentence_errors\n'
        # The stand-ins lie before the real ones, which is no mixture.
        'packages.mixture = lambda *_: None\n'
        "with one_sentence_errors('train'):\n"
        f'    packages.enter_scope({scope!r})\n'
    )
    done = python(folder, '-c', code)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith('train: ') and done.stderr.count('\n') == 1
    return done.stderr


def test_a_version_that_is_refused(tmp_path):
    """As mmdet 3.3 and mmsegmentation 1.2 do to mmcv 2.2."""
    module(tmp_path, 'mmdet', REFUSES, '3.3.0')
    module(tmp_path, 'mmcv', version='2.2.0')
    said = refusal(tmp_path)
    assert 'MMCV==2.2.0 is used but incompatible.' in said
    assert 'it refuses mmcv==2.2.0' in said
    assert 'pip install mmcv==2.1.0' in said
    assert 'get_started.md#versions' in said


def test_a_version_that_another_package_refuses(tmp_path):
    """mmpretrain 1.2 accepts mmcv 2.2, and imports mmdet if it is there."""
    module(tmp_path, 'mmdet', REFUSES, '3.3.0')
    module(tmp_path, 'mmpretrain', 'import mmdet', '1.2.0')
    module(tmp_path, 'mmcv', version='2.2.0')
    said = refusal(tmp_path, 'mmpretrain')
    assert 'mmdet, which mmpretrain imports' in said
    assert 'refuses mmcv==2.2.0' in said and 'or uninstall mmdet' in said


@pytest.mark.parametrize(
    ('text', 'advice'),
    [
        ('import mmcv._ext', 'operators are not compiled'),
        ('import no_such.part', 'run pip install no_such'),
        ("raise ImportError('libGL.so.1: not found')", 'libGL.so.1'),
        (
            "raise ModuleNotFoundError('', name='pkg_resources')",
            'setuptools<81',
        ),
    ],
)
def test_what_is_missing_is_named(text, advice, tmp_path):
    module(tmp_path, 'mmcv')
    module(tmp_path, 'mmseg', text, distribution='mmsegmentation')
    said = refusal(tmp_path, 'mmseg')
    assert 'mmsegmentation 1.0 cannot be imported' in said and advice in said


def test_a_package_that_is_not_there(tmp_path):
    code = (
        'import sys\n'
        'from mmdat.utils import packages\n'
        "sys.modules['mmdet'] = None  # import says there is none\n"
        'packages.installed = lambda module: {}\n'
        "packages.check_package('mmdet')\n"
    )
    said = python(tmp_path, '-c', code).stderr.splitlines()[-1]
    assert 'pip install onedl-mmdetection' in said
    assert 'or pip install mmdet;' in said


def test_scopes_of_others_are_left_alone(tmp_path):
    code = "from mmdat.utils.packages import *; enter_scope('mine')"
    assert python(tmp_path, '-c', code).returncode == 0


def test_two_packages_in_one_folder_are_warned_of(tmp_path):
    """What is left when pip has put a fork over the official package."""
    module(tmp_path, 'mmcv')
    distribute(tmp_path, 'onedl-mmcv', '2.3.6')
    done = python(
        tmp_path,
        *('tools/train.py', 'configs/mask_rcnn_dat_digits.py'),
        *('--data-root', 'nowhere/'),
    )
    warning = next(
        line for line in done.stderr.splitlines() if 'mmcv 1.0' in line
    )
    assert warning.startswith('warning: mmcv 1.0 and onedl-mmcv 2.3.6 are')
    assert 'pip uninstall -y mmcv onedl-mmcv' in warning


def test_this_environment_is_of_one_kind():
    for name in DISTRIBUTIONS:
        assert mixture(name) is None


@pytest.mark.parametrize(
    ('wrong', 'right'), [('mmdett', 'mmdet'), ('mmsegmentation', 'mmseg')]
)
def test_names_of_scopes_that_are_misspelt(wrong, right):
    with pytest.raises(UserError, match=f"no '{wrong}', but '{right}'"):
        check_package(wrong)


def test_mmengine_needs_distutils(monkeypatch):
    """It went with Python 3.12; setuptools has a copy."""
    monkeypatch.setattr(packages, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='run pip install setuptools'):
        packages.check_distutils()
