# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os

import pytest
from mmengine.config import Config

from mmdat.engine import configuration as c
from mmdat.utils.errors import UserError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "optim_wrapper = dict(type='OptimWrapper', x=1)\nwork = dict(a=1)\n"
    )
    return str(path)


def test_work_dir_of_the_command_line_wins(path):
    cfg = c.load_config(path)
    c.set_work_dir(cfg, None)
    assert cfg.work_dir == 'work_dirs/mine'
    c.set_work_dir(cfg, None)
    assert cfg.work_dir == 'work_dirs/mine'
    c.set_work_dir(cfg, '~/x')
    assert cfg.work_dir == os.path.expanduser('~/x')
    c.set_work_dir(cfg, 'else')
    assert cfg.work_dir == 'else'


def test_options_override_and_must_fit(path):
    assert c.load_config(path, {'work.a': 2}).work.a == 2
    with pytest.raises(UserError, match='does not fit .*mine.py'):
        c.load_config(path, {'work.a.b': 2})


def test_auto_scale_lr_needs_a_base(path):
    cfg = c.load_config(path)
    with pytest.raises(UserError, match='base_batch_size'):
        c.enable_auto_scale_lr(cfg)
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=16)
    c.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable


def test_amp_keeps_what_a_config_chose(path, monkeypatch):
    monkeypatch.setattr(c, 'get_device', lambda: 'cuda')
    cfg = c.load_config(path)
    c.enable_amp(cfg)
    assert cfg.optim_wrapper == dict(
        type='AmpOptimWrapper', x=1, loss_scale='dynamic'
    )
    chosen = dict(type='AmpOptimWrapper', dtype='bfloat16')
    cfg = Config(dict(optim_wrapper=dict(chosen)))
    c.enable_amp(cfg)
    assert cfg.optim_wrapper == chosen


@pytest.mark.parametrize(('scope', 'set_'), [('mmpretrain', 1), ('mmdet', 0)])
def test_mmpretrain_gets_its_collate_function(scope, set_):
    cfg = Config(dict(default_scope=scope, test_dataloader=dict(x=1)))
    c.set_loader_defaults(cfg)
    assert ('collate_fn' in cfg.test_dataloader) == bool(set_)
