# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os

import pytest
from mmengine.config import Config

from mmdat.engine import configuration as c
from mmdat.engine.arguments import common_parser
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


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('a.py', 'x = undefined', "NameError: name 'undefined'"),
        ('a.py', '_base_ = []\nimport no_such', "No module named 'no_such'"),
        ('a.py', "_base_ = 'a.py'", 'it inherits from itself'),
        ('a.py', '_base_ = 5', 'TypeError'),
        ('a.py', "_base_ = 'mmdett::a/x.py'", 'mmdett'),
        ('a.py', "filename = 'x'", 'filename is reserved'),
        (
            'a.py',
            "custom_imports = dict(imports=['no_such'])",
            'Failed to import no_such, which custom_imports names',
        ),
        ('a.json', '{"x": ', 'Expecting value'),
        ('a.yaml', 'x: [1', 'ParserError'),
        ('a.pth', 'x', 'A config is a file in .py, .json'),
    ],
)
def test_files_that_are_no_configs(name, text, words, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as told:
        c.load_config(str(path))
    assert words in str(told.value) and str(path) in str(told.value)
    assert '\n' not in str(told.value)


def test_settings_that_mmengine_takes_for_a_dict(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('env_cfg = None\nrandomness = None\nresume = None\n')
    cfg = c.load_config(str(path))
    assert not {'env_cfg', 'randomness'} & set(cfg) and 'resume' in cfg


@pytest.mark.parametrize(
    ('place', 'words'),
    [
        ('data_root', 'no effect; use --data-root'),
        ('max_epochs', 'no effect; use train_cfg.max_epochs'),
        ('modell.x', "reads no setting 'modell'"),
        ('optim_wrapper.xs.y', None),
        ('optim_wrapper.type', None),
        ('optim_wrapper.accumulative_counts', None),
        ('model.test_cfg.max_per_image', 'has model.test_cfg.max_per_img'),
        ('model.test_cfg.max_per_img', None),
        ('model.heads.1.chanels', 'has model.heads.1.channels'),
        ('model.heads.7.chanels', None),
        ('auto_scale_lr.enable', None),
        ('find_unused_parameters', None),
    ],
)
def test_options_without_effect(place, words):
    heads = [dict(a=1), dict(channels=2)]
    cfg = Config(
        dict(
            data_root='data/',
            optim_wrapper=dict(type='OptimWrapper', x=1),
            model=dict(test_cfg=dict(max_per_img=3), heads=heads),
        )
    )
    notes = c.unread_options(cfg, {place: 1})
    assert len(notes) == (words is not None)
    assert words is None or words in notes[0]


def test_options_are_keys_and_values(capsys):
    parser = common_parser(None)
    for wrong in ('train_cfg.max_epochs', '=1', 'x=[1,2'):
        with pytest.raises(SystemExit):
            parser.parse_args(['a.py', '--cfg-options', wrong])
        assert wrong in capsys.readouterr().err
    args = parser.parse_args(['a.py', '--cfg-options', 'x.y=[1,2]'])
    assert args.cfg_options == {'x.y': [1, 2]}
