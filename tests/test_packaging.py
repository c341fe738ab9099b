# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is installed: configs and tools for mim, and nothing over a fork."""

import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import mmdat

ROOT = Path(__file__).parents[1]


def build(target: Path, *kind: str) -> None:
    """Builds in a copy, as pip does from a source tree."""
    copy = target / 'source'
    skip = shutil.ignore_patterns('.*', 'data', 'work_dirs', 'tests')
    shutil.copytree(ROOT, copy, ignore=skip)
    code = (
        'import sys\nfrom setuptools import build_meta\n'
        f'build_meta.build_{kind[0]}({str(target)!r})'
    )
    subprocess.run(
        [sys.executable, '-c', code], cwd=copy, check=True, capture_output=True
    )
    assert not (copy / 'mmdat' / '.mim').exists()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    build(folder, 'wheel')
    return zipfile.ZipFile(next(folder.glob('*.whl')))


def test_a_wheel_carries_everything(wheel):
    names = set(wheel.namelist())
    for path in (
        'mmdat/models/attention/deformable.py',
        'mmdat/.mim/configs/mask_rcnn_dat_t_coco.py',
        'mmdat/.mim/configs/_base_/models/mask_rcnn_dat.py',
        'mmdat/.mim/tools/train.py',
        'mmdat/.mim/tools/dist_train.sh',
        'mmdat/.mim/model-index.yml',
    ):
        assert path in names
    assert not any('tests/' in n or '__pycache__' in n for n in names)
    ours = {
        str(p.relative_to(ROOT))
        for p in (ROOT / 'mmdat').rglob('*.py')
        if '.mim' not in p.parts
    }
    assert ours <= names


def test_a_source_distribution_carries_everything(tmp_path):
    build(tmp_path, 'sdist')
    shutil.unpack_archive(next(tmp_path.glob('*.tar.gz')), tmp_path / 'out')
    top = next((tmp_path / 'out').iterdir())
    for path in ('configs/mask_rcnn_dat_t_coco.py', 'tools/dist_train.sh'):
        assert (top / path).is_file()


def test_requirements_name_no_openmmlab_package_outside_extras(wheel):
    name = next(n for n in wheel.namelist() if n.endswith('METADATA'))
    metadata = message_from_string(wheel.read(name).decode())
    lines = metadata.get_all('Requires-Dist')
    assert {'det', 'seg', 'cls', 'all', 'dev'} == set(
        metadata.get_all('Provides-Extra')
    )
    always = [line for line in lines if 'extra ==' not in line]
    assert [line.split('>')[0] for line in always] == ['torch']
    # An extra would join the official packages to an installed fork.
    official = ('mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain')
    assert not any(line.startswith(official) for line in lines)


def test_this_installation_shows_its_configs_to_mim():
    mim = Path(mmdat.__file__).parent / '.mim'
    if not mim.exists() and Path(mmdat.__file__).parents[1] == ROOT:
        pytest.skip('run from a source tree that is not installed')
    assert (mim / 'configs' / 'mask_rcnn_dat_t_coco.py').is_file()
    assert (mim / 'tools' / 'train.py').is_file()
    assert (mim / 'model-index.yml').is_file()
