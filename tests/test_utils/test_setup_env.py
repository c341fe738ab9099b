# Copyright (c) mmdat contributors. Apache-2.0 licence.
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils

import mmdat
from mmdat.utils.setup_env import setup_config_packages

pytest.importorskip('mmseg')
BASES = (
    'mmdet::_base_/default_runtime.py',
    'mmseg::_base_/models/fcn_r50-d8.py',
)


@pytest.mark.parametrize(
    'base', [*BASES, 'mmpretrain::_base_/default_runtime.py']
)
def test_configs_of_every_package_can_be_inherited(base, tmp_path):
    setup_config_packages()
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = '{base}'\n")
    cfg = Config.fromfile(path)
    assert 'model' in cfg or 'default_scope' in cfg


def test_configs_of_ours_can_be_inherited(tmp_path):
    if not (Path(mmdat.__file__).parent / '.mim').exists():
        pytest.skip('run from a source tree that is not installed')
    setup_config_packages()
    path = tmp_path / 'config.py'
    path.write_text("_base_ = 'mmdat::_base_/schedules/coco_1x.py'\n")
    assert Config.fromfile(path).train_cfg.max_epochs == 12


def test_installed_distributions_are_left_alone(monkeypatch):
    table = {'json': 'json', 'mmseg': 'no_such_package'}
    monkeypatch.setattr(config_utils, 'MODULE2PACKAGE', table)
    setup_config_packages()
    assert table == {'json': 'json', 'mmseg': 'mmseg', 'mmdat': 'mmdat'}
