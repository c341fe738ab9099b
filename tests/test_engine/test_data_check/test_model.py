# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Heads, channels and schedules of configs, without any data."""

from copy import deepcopy

import family
import pytest
from mmengine.config import Config, ConfigDict

from mmdat.engine.data_check.channels import check_channels, unused_maps
from mmdat.engine.data_check.heads import (
    check_heads,
    check_ignored,
    check_learnable,
    check_loss_names,
    check_weights,
    heads_of,
)
from mmdat.engine.data_check.loaders import (
    check_batches,
    check_checkpoints,
    check_loops,
)
from mmdat.engine.data_check.metrics import check_best, check_evaluators
from mmdat.engine.data_check.optimizers import check_old_keys, check_optimizer
from mmdat.engine.data_check.parts import parts_of
from mmdat.engine.data_check.preprocessing import (
    check_padding,
    check_preprocessing,
)
from mmdat.engine.data_check.report import Report
from mmdat.engine.data_check.schedule import check_schedule, check_warm_up
from mmdat.engine.data_check.strides import check_strides
from mmdat.engine.preflight import _main_backbone

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')
NUMBERS = dict(coco=80, ade20k=150, in1k=1000, digits=None)


def channels_of(cfg):
    backbone = _main_backbone(cfg)
    dims = [stage.dim for stage in backbone.arch.stages]
    return [dims[i] for i in backbone.out_indices]


@pytest.mark.parametrize('name', family.NAMES)
def test_our_configs_agree_with_themselves(name):
    cfg, report = family.load(name), Report()
    check_channels(cfg, channels_of(cfg), report)
    numbers = {number for _, number in heads_of(cfg)}
    assert len(numbers) == 1
    indices = _main_backbone(cfg).out_indices
    check_strides(cfg, [4 * 2**i for i in indices], report)
    check_loops(cfg, ('train', 'val'), report)
    check_checkpoints(cfg, report)
    check_batches(cfg, 'train', 100_000, 8, report)
    check_optimizer(cfg, report)
    check_old_keys(cfg, report)
    check_schedule(cfg, 100_000, 8, report)
    check_learnable(cfg, report)
    check_loss_names(cfg, report)
    check_padding(cfg, 255, 'train', report)
    parts = parts_of(cfg, 'train') + parts_of(cfg, 'val')
    check_preprocessing(cfg, parts, report)
    assert not report.warnings
    expected = NUMBERS[name.rpartition('_')[2]]
    if expected is not None:
        assert numbers == {expected}
    check_heads(cfg, numbers.pop(), 'it', report)
    check_ignored(cfg, 255, 'it', report)
    check_weights(cfg, report)
    check_evaluators(cfg, 'val', report)
    check_best(cfg, report)
    assert not report.errors
    assert unused_maps(cfg, len(channels_of(cfg))) == []


def heads(model, number, scope='mmdet'):
    report = Report()
    cfg = Config(dict(model=model, default_scope=scope))
    check_heads(cfg, number, 'the data', report)
    return ' '.join(report.errors)


@pytest.mark.parametrize(
    ('name', 'head', 'good'),
    [
        ('upernet_dat_digits', 'decode_head', (11,)),
        ('mask_rcnn_dat_digits', 'roi_head.bbox_head', (10, 11)),
        ('classifier_dat_digits', 'head', (10,)),
    ],
)
def test_a_weight_for_each_class(name, head, good):
    cfg = deepcopy(family.load(name))
    settings = cfg.model
    for key in head.split('.'):
        settings = settings[key]
    key = next(k for k in settings if k.startswith('loss'))
    for number in (3, 10, 11, 12):
        settings[key].class_weight = [1.0] * number
        report = Report()
        check_weights(cfg, report)
        assert bool(report.errors) == (number not in good)
    assert f'model.{head}.{key}.class_weight has 12' in report.errors[0]


def test_every_head_is_named():
    model = deepcopy(family.load('cascade_mask_rcnn_dat_t_coco').model)
    assert not heads(model, 80)
    said = heads(model, 3)
    for i in range(3):
        assert f'model.roi_head.bbox_head.{i}.num_classes=80' in said
    assert 'model.roi_head.mask_head.num_classes=80' in said
    model.roi_head.mask_head.class_agnostic = True
    assert 'mask_head' not in heads(model, 3)
    for head in model.roi_head.bbox_head:
        head.reg_class_agnostic = True
    assert 'model.roi_head.bbox_head.0.num_classes=80' in heads(model, 3)


def test_heads_that_do_not_say_how_many():
    model = deepcopy(family.load('mask_rcnn_dat_t_coco').model)
    del model.roi_head.bbox_head['num_classes']
    assert 'bbox_head.num_classes=80' in heads(model, 3)
    assert not heads(model, 80)


def test_heads_that_count_something_else():
    model = dict(
        rpn_head=dict(type='RPNHead', num_classes=1),
        roi_head=dict(semantic_head=dict(num_classes=183)),
        bbox_head=dict(type='RetinaHead', num_classes=3),
        backbone=dict(type='DAT', num_classes=9),
        panoptic_head=dict(num_things_classes=3, num_stuff_classes=0),
    )
    assert not heads(model, 3)
    model['panoptic_head']['num_things_classes'] = 80
    assert 'panoptic_head.num_things_classes=80' in heads(model, 3)
    seg = dict(
        decode_head=dict(num_classes=19),
        auxiliary_head=[
            dict(type='FCNHead', num_classes=19),
            dict(type='STDCHead', num_classes=2),
        ],
    )
    assert not heads(seg, 19, 'mmseg')


def told_of_channels(model, channels):
    report = Report()
    check_channels(Config(dict(model=model)), channels, report)
    return ' '.join(report.errors)


MAPS = [64, 128, 256, 512]


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (dict(neck=dict(type='FPN', in_channels=[96, 192])), '[64, 128'),
        (dict(neck=dict(type='FPN', in_channels=MAPS[1:])), 'set it to [64'),
        (dict(neck=dict(type='DilatedEncoder', in_channels=2048)), 'to 512'),
        (dict(neck=[dict(type='FPN', in_channels=[1, 2, 3, 4])]), 'neck.0'),
        (dict(decode_head=dict(in_channels=2048, in_index=3)), 'to 512'),
        (dict(decode_head=dict(in_channels=256)), 'set it to 512'),
        (
            dict(
                decode_head=dict(in_channels=[96] * 4, in_index=[0, 1, 2, 3])
            ),
            'set it to [64, 128, 256, 512]',
        ),
        (
            dict(
                decode_head=dict(in_channels=MAPS, in_index=[0, 1, 2, 3]),
                auxiliary_head=[dict(in_channels=384, in_index=2)],
            ),
            'auxiliary_head.0.in_channels is 384, so set it to 256',
        ),
        (
            dict(decode_head=dict(in_channels=256, in_index=4)),
            'outputs 4 maps',
        ),
        (
            dict(
                neck=dict(type='GlobalAveragePooling'),
                head=dict(in_channels=768),
            ),
            'model.head.in_channels is 768, so set it to 512',
        ),
    ],
)
def test_channels_that_are_not_those_of_the_backbone(model, words):
    assert words in told_of_channels(model, MAPS)


@pytest.mark.parametrize(
    'model',
    [
        dict(),
        dict(neck=None),
        dict(neck=dict(type='FPN', in_channels=MAPS)),
        dict(neck=dict(type='FPN', in_channels=tuple(MAPS))),
        dict(neck=dict(type='Mine')),
        dict(neck=dict(type='LinearNeck', in_channels=512)),
        dict(
            neck=dict(type='FPN', in_channels=MAPS),
            decode_head=dict(in_channels=[256] * 4),
        ),
        dict(decode_head=dict(in_channels=MAPS)),
        dict(head=dict(in_channels=768)),  # no neck: the head does it all
    ],
)
def test_channels_that_fit_or_are_not_known(model):
    assert not told_of_channels(model, MAPS)


@pytest.mark.parametrize(
    ('model', 'unused'),
    [
        (dict(neck=dict(type='FPN', start_level=1)), [0]),
        (dict(neck=dict(type='FPN', start_level=2)), [0, 1]),
        (dict(neck=dict(type='FPN')), []),
        (dict(neck=dict(type='GlobalAveragePooling')), [0, 1, 2]),
        (dict(decode_head=dict(in_channels=512)), [0, 1, 2]),
        (
            dict(
                decode_head=dict(in_channels=512, in_index=3),
                auxiliary_head=dict(in_channels=256, in_index=2),
            ),
            [0, 1],
        ),
        (dict(decode_head=dict(in_channels=MAPS, in_index=[0, 1, 2, 3])), []),
        (dict(decode_head=dict(pixel_decoder=dict())), []),
        (dict(bbox_head=dict()), []),
    ],
)
def test_maps_that_nothing_reads(model, unused):
    assert unused_maps(Config(dict(model=model)), 4) == unused


def told_of_warm_up(pictures, processes=1, **changes):
    cfg = ConfigDict(
        train_cfg=dict(max_epochs=12),
        train_dataloader=dict(batch_size=2),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=500),
            dict(type='MultiStepLR', end=12, milestones=[8, 11]),
        ],
    )
    cfg.update(changes)
    report = Report()
    check_warm_up(Config(cfg), pictures, processes, report)
    assert not report.errors
    return ' '.join(report.warnings)


def test_a_warm_up_longer_than_the_training():
    said = told_of_warm_up(22)
    assert 'takes 500 iterations and the training has 132 ' in said
    assert '12 epochs of 11, 22 pictures in batches of 2' in said
    assert 'lower param_scheduler.0.end' in said
    assert not told_of_warm_up(100)
    assert 'in 4 processes' in told_of_warm_up(100, 4)
    assert not told_of_warm_up(None)
    assert told_of_warm_up(None, train_cfg=dict(max_iters=400))
    assert not told_of_warm_up(None, train_cfg=dict(max_iters=500))
    by_epoch = dict(type='LinearLR', start_factor=0.1, end=20)
    assert told_of_warm_up(22, param_scheduler=by_epoch)
    assert not told_of_warm_up(22, param_scheduler=dict(by_epoch, end=5))
    assert not told_of_warm_up(22, param_scheduler=None)


def schedule_warnings(schedulers, pictures=80, **loop):
    cfg, report = deepcopy(family.load('mask_rcnn_dat_digits')), Report()
    cfg.train_cfg = dict(
        dict(type='EpochBasedTrainLoop', max_epochs=6), **loop
    )
    cfg.train_dataloader.batch_size = 8
    cfg.param_scheduler = schedulers
    check_schedule(cfg, pictures, 1, report)
    assert not report.errors
    return report.warnings


@pytest.mark.parametrize(
    ('scheduler', 'words'),
    [
        (dict(type='MultiStepLR', milestones=[4, 8, 11]), 'steps at 8, 11;'),
        (dict(type='MultiStepLR', milestones=[3, 5]), None),
        (
            dict(type='MultiStepLR', by_epoch=False, milestones=[30, 90]),
            'are in iterations, and the training has 60',
        ),
        (dict(type='CosineAnnealingLR', T_max=12), 'takes 12 epochs'),
        (
            dict(type='CosineAnnealingLR', T_max=4, begin=0, end=6),
            'rises again after 4; set it to 6.',
        ),
        (dict(type='CosineAnnealingLR', T_max=5, begin=1, end=6), None),
        (dict(type='CosineAnnealingLR', begin=0, end=6), None),
        (
            dict(
                type='CosineAnnealingLR', T_max=6, convert_to_iter_based=True
            ),
            None,
        ),
        (dict(type='LinearLR', by_epoch=False, end=500), None),
    ],
)
def test_schedules_that_do_not_fit_the_training(scheduler, words):
    said = schedule_warnings(scheduler)
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_schedules_by_epochs_in_a_loop_of_iterations():
    loop = {'type': 'IterBasedTrainLoop', 'max_iters': 60}
    first = dict(type='LinearLR', by_epoch=False, start_factor=0.1, end=10)
    second = dict(type='PolyLR', begin=10, end=60)
    (said,) = schedule_warnings([first, second], **loop)
    assert said.startswith('param_scheduler.1 (PolyLR) steps after epochs')
    second['by_epoch'] = False
    assert not schedule_warnings([first, second], **loop)


@pytest.mark.parametrize(
    ('name', 'changes', 'words'),
    [
        ('upernet_dat_digits', dict(num_classes=1), 'add a class for the'),
        ('classifier_dat_digits', dict(num_classes=1), 'add a second class'),
        (
            'upernet_dat_digits',
            dict(num_classes=2, out_channels=1),
            'One output needs a sigmoid',
        ),
    ],
)
def test_heads_that_would_learn_nothing(name, changes, words):
    cfg, report = deepcopy(family.load(name)), Report()
    key = 'head' if name.startswith('class') else 'decode_head'
    cfg.model[key].update(changes)
    check_learnable(cfg, report)
    (said,) = report.errors
    assert f'model.{key}.' in said and words in said
    if key == 'decode_head':
        cfg.model[key].loss_decode = dict(
            type='CrossEntropyLoss', use_sigmoid=True
        )
        report = Report()
        check_learnable(cfg, report)
        assert not report.errors


def test_losses_that_are_not_added_up():
    cfg, report = deepcopy(family.load('upernet_dat_digits')), Report()
    cfg.model.decode_head.loss_decode = [
        dict(type='CrossEntropyLoss'),
        dict(type='DiceLoss', loss_name='dice'),
    ]
    check_loss_names(cfg, report)
    assert "loss_decode.1.loss_name is 'dice'" in report.errors[0]
