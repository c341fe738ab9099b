# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Settings of optimizers that nothing reads, or that fail late."""

from copy import deepcopy

import family
import pytest

from mmdat.engine.data_check.optimizers import (
    check_old_keys,
    check_optimizer,
    unmatched_keys,
)
from mmdat.engine.data_check.report import Report

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')
DETECTOR = 'mask_rcnn_dat_digits'
OWN = 'optim_wrapper.'


def report_of(changes, name=DETECTOR):
    cfg, report = deepcopy(family.load(name)), Report()
    cfg.merge_from_dict(changes)
    check_optimizer(cfg, report)
    check_old_keys(cfg, report)
    return report


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({OWN + 'optimizer.type': 'AdamWW'}, "a similar name is 'AdamW'"),
        ({OWN + 'optimizer.lr': -1}, 'above 0; got -1'),
        ({OWN + 'optimizer.lr': '1e-3'}, "above 0; got '1e-3'"),
        ({OWN + 'optimizer.lr': float('nan')}, 'got nan'),
        ({OWN + 'accumulative_counts': 0}, 'accumulative_counts must be'),
        ({OWN + 'clip_grad': 5}, 'such as dict(max_norm=5); got 5'),
        ({OWN + 'clip_grad.maxnorm': 5}, "similar name is 'max_norm'"),
        ({OWN + 'clip_grad.max_norm': 0}, 'above 0; got 0'),
        ({OWN + 'clip_grad.type': 'norms'}, "'norm' or 'value'"),
        (
            {OWN + 'paramwise_cfg': dict(norm_decay=0.0)},
            "a similar name is 'norm_decay_mult'",
        ),
        (
            {
                OWN + 'paramwise_cfg': dict(
                    custom_keys=dict(backbone=dict(lr_mul=0.1))
                )
            },
            "a similar name is 'lr_mult'",
        ),
    ],
)
def test_settings_that_fail_or_are_not_read(changes, words):
    (said,) = report_of(changes).errors
    assert words in said


def test_settings_that_are_right():
    cfg, report = deepcopy(family.load(DETECTOR)), Report()
    cfg.optim_wrapper.clip_grad = dict(type='value', clip_value=1.0)
    cfg.optim_wrapper.paramwise_cfg = dict(
        norm_decay_mult=0.0,
        custom_keys=dict(backbone=dict(lr_mult=0.1, betas=(0.9, 0.99))),
    )
    check_optimizer(cfg, report)
    cfg.optim_wrapper.constructor = 'TheirConstructor'
    cfg.optim_wrapper.paramwise_cfg = dict(theirs=1)
    check_optimizer(cfg, report)
    assert not report.errors and not report.warnings


def test_a_rate_of_zero_is_said():
    assert 'lr is 0' in report_of({OWN + 'optimizer.lr': 0}).warnings[0]


@pytest.mark.parametrize(
    'old',
    [
        dict(optimizer=dict(type='AdamW', lr=1.0)),
        dict(optimizer=dict(lr=1.0)),
        dict(lr_config=dict(policy='step')),
        dict(data=dict(samples_per_gpu=2)),
        dict(total_epochs=3),
        dict(evaluation=dict(interval=1)),
    ],
)
def test_keys_that_mmengine_does_not_read(old):
    (said,) = report_of(old).warnings
    assert f'{next(iter(old))} is a key of MMCV 1.x' in said


def test_variables_of_bases_are_left_alone():
    used = family.load(DETECTOR).optim_wrapper.optimizer
    for variable in (
        dict(optimizer=dict(used)),
        dict(optimizer=dict(type='SGD', lr=0.01)),
        dict(data=dict(root='data')),
        dict(max_epochs=7),
    ):
        assert not report_of(variable).warnings


def test_keys_that_match_no_parameter():
    cfg = deepcopy(family.load(DETECTOR))
    custom = {'absolute_pos_embed': dict(decay_mult=0.0), 'norm': dict()}
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=custom)
    names = ['backbone.norm0.weight', 'head.fc.weight']
    assert unmatched_keys(cfg, names) == ['absolute_pos_embed']
