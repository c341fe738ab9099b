# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What --pretrained does to a config, and when its lack is spoken of."""

import pytest
import torch
from mmengine.config import Config

from mmdat import DAT
from mmdat.engine.preflight import check_run
from mmdat.engine.starting import (
    match_tables,
    set_pretrained,
    warn_of_random_start,
)
from mmdat.utils.errors import UserError

ARCH = dict(
    embed_dims=[16, 32, 32, 64], depths=[2] * 4, num_heads=[1, 2, 2, 4]
)


def config(scope='mmdet', dataset=None, init_cfg=None, arch='dat_t', **rest):
    backbone = dict(type='DAT', arch=arch, init_cfg=init_cfg or {})
    return Config(
        dict(
            default_scope=scope,
            model=dict(type='X', backbone=backbone),
            train_dataloader=dict(dataset=dataset or dict(type='Mine')),
            **rest,
        )
    )


def test_the_backbone_starts_from_the_file():
    cfg = config(init_cfg=dict(prefix='teacher.', strict=False))
    set_pretrained(cfg, 'x.pth')
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained',
        checkpoint='x.pth',
        prefix='teacher.',
        strict=False,
    )
    set_pretrained(cfg, None)
    assert cfg.model.backbone.init_cfg.checkpoint == 'x.pth'
    set_pretrained(cfg, 'none')
    assert cfg.model.backbone.init_cfg == {}


def test_a_file_that_load_from_overrides_is_refused():
    cfg = config(load_from='y.pth')
    with pytest.raises(UserError, match='overridden by load_from=y.pth'):
        set_pretrained(cfg, 'x.pth')
    set_pretrained(cfg, 'none')


def test_a_model_without_dat_is_refused():
    cfg = Config(dict(model=dict(backbone=dict(type='ResNet'))))
    with pytest.raises(UserError, match='--pretrained is for the backbone'):
        set_pretrained(cfg, 'x.pth')


def test_a_bad_file_is_refused_before_work(tmp_path):
    cfg = config()
    set_pretrained(cfg, str(tmp_path / 'x.pth'))
    with pytest.raises(UserError, match='There is no checkpoint .*x.pth'):
        check_run(cfg, ())
    torch.save(DAT(ARCH).state_dict(), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='does not fit the backbone'):
        check_run(cfg, ())
    cfg.model.backbone.arch = dict(ARCH, depths=[1, 2, 2, 2])
    cfg.model.backbone.init_cfg.strict = False
    check_run(cfg, ())


COCO = dict(type='CocoDataset')
ADE = dict(type='ADE20KDataset')
MINE = dict(type='CocoDataset', metainfo=dict(classes=('a',)))


@pytest.mark.parametrize(
    ('settings', 'pretrained', 'warned'),
    [
        (dict(dataset=COCO), None, True),
        (dict(dataset=COCO, arch=ARCH), None, True),
        (dict(scope='mmseg', dataset=ADE, arch=ARCH), None, True),
        (
            dict(dataset=dict(type='RepeatDataset', dataset=COCO), arch=ARCH),
            None,
            True,
        ),
        (dict(dataset=MINE), None, True),
        (dict(dataset=MINE, arch=ARCH), None, False),  # no weights exist
        (dict(dataset=COCO), 'none', False),
        (dict(dataset=COCO, load_from='y.pth'), None, False),
        (dict(dataset=COCO, load_from='y.pth', resume=True), None, False),
        (dict(dataset=COCO, resume=False), None, True),
        (dict(dataset=COCO, init_cfg=dict(checkpoint='x')), None, False),
        (dict(scope='mmpretrain'), None, False),
    ],
)
def test_random_weights_are_spoken_of(settings, pretrained, warned, capsys):
    warn_of_random_start(config(**settings), pretrained)
    said = capsys.readouterr().err
    assert said.count('warning: model.backbone starts from random') == warned
    assert ('--pretrained none if you mean it.' in said) == warned


def test_one_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    warn_of_random_start(config(dataset=COCO), None)
    assert not capsys.readouterr().err


@pytest.mark.parametrize('through', ['load_from', 'init_cfg', 'prefix'])
@pytest.mark.parametrize('family', ['dat', 'dat_pp'])
def test_tables_are_built_as_in_the_file(tmp_path, through, family):
    """As a shape that changes later is too late for several processes."""
    path, arch = str(tmp_path / 'x.pth'), dict(ARCH, family=family)
    cfg, place = config(arch=dict(arch, img_size=128)), ''
    if through == 'prefix':
        place = cfg.model.backbone.init_cfg.prefix = 'teacher.'
    entries = DAT(arch, img_size=64).state_dict()
    torch.save({place + name: value for name, value in entries.items()}, path)
    if through == 'load_from':
        cfg.load_from = path
    else:
        set_pretrained(cfg, path)
    match_tables(cfg)
    built = cfg.model.backbone.get('img_size')
    assert built == (64 if family == 'dat_pp' else None)
