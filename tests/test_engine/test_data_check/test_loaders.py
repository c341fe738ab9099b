# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Loops, loaders and checkpoints that would stop, or never end."""

from copy import deepcopy

import family
import pytest

from mmdat.engine.data_check.loaders import (
    check_batches,
    check_checkpoints,
    check_loops,
)
from mmdat.engine.data_check.report import Report

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')
DETECTOR = 'mask_rcnn_dat_digits'
SEGMENTOR = 'upernet_dat_digits'
LOADER = 'train_dataloader.'


def report_of(changes, name=DETECTOR, pictures=None, processes=1):
    cfg, report = deepcopy(family.load(name)), Report()
    cfg.merge_from_dict(changes)
    for key in [key for key, value in changes.items() if value is None]:
        cfg[key] = None
    check_loops(cfg, ('train', 'val'), report)
    check_checkpoints(cfg, report)
    check_batches(cfg, 'train', pictures, processes, report)
    return report


ENDLESS = {'sampler.type': 'InfiniteSampler'}


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({LOADER + 'batch_size': 0}, 'batch_size must be a whole number'),
        ({LOADER + 'batch_size': '8'}, "at least 1; got '8'"),
        ({'val_dataloader.num_workers': -1}, 'at least 0; got -1'),
        ({LOADER + 'persistent_workers': True}, 'num_workers is 0'),
        ({LOADER + 'prefetch_factor': 2}, 'prefetch_factor is for workers'),
        ({LOADER + 'shuffle': True}, 'exclude each other'),
        ({LOADER + 'samples_per_gpu': 2}, "no setting 'samples_per_gpu'"),
        ({'train_cfg.max_epochs': 0}, 'max_epochs must be a whole number'),
        ({'train_cfg.val_interval': 0}, 'val_interval must be a whole'),
        ({'val_cfg': None}, 'val_cfg is None, so set it, or all of val'),
        (
            {'train_cfg': None, 'optim_wrapper': None},
            'train_cfg and optim_wrapper are None, so set them.',
        ),
        ({'test_evaluator': None}, 'test_evaluator is None'),
        ({LOADER + 'sampler.type': 'InfiniteSampler'}, 'never end'),
        ({'val_dataloader.sampler.type': 'InfiniteSampler'}, 'val loop'),
        ({'custom_hooks': {'type': 'EMAHook'}}, 'must be a list of hooks'),
    ],
)
def test_what_stops_a_run_is_told(changes, words):
    (said,) = report_of(changes).errors
    assert words in said


@pytest.mark.parametrize(
    ('wrapper', 'words'),
    [
        (dict(type='RepeatDataset', times=0), 'dataset.times must be'),
        (dict(type='RepeatDataset', times='2'), "at least 1; got '2'"),
        (dict(type='ConcatDataset', datasets=[]), 'it is empty'),
    ],
)
def test_wrappers_that_hold_nothing(wrapper, words):
    cfg, report = deepcopy(family.load(DETECTOR)), Report()
    if wrapper['type'] == 'RepeatDataset':
        wrapper = dict(wrapper, dataset=cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = wrapper
    check_loops(cfg, ('train', 'val'), report)
    (said,) = report.errors
    assert words in said


def test_a_loader_without_a_sampler():
    cfg, report = deepcopy(family.load(DETECTOR)), Report()
    del cfg.train_dataloader['sampler']
    check_loops(cfg, ('train',), report)
    assert 'train_dataloader needs a sampler' in report.errors[0]


def test_no_validation_is_right():
    none = dict.fromkeys(('val_dataloader', 'val_cfg', 'val_evaluator'))
    assert not report_of(none).errors


def test_loops_of_iterations_may_read_without_end():
    assert not report_of({}, SEGMENTOR).errors
    kind = family.load(SEGMENTOR).train_dataloader.sampler.type
    assert kind == 'InfiniteSampler'


def test_a_batch_that_is_dropped():
    drop = {LOADER + 'drop_last': True, LOADER + 'batch_size': 8}
    (said,) = report_of(drop, pictures=7).errors
    assert '7 pictures make no batch of 8' in said
    (said,) = report_of(drop, pictures=20, processes=4).errors
    assert '5 pictures in each process make no batch of 8' in said
    assert not report_of(drop, pictures=8).errors
    assert not report_of(drop).errors
    keep = {LOADER + 'drop_last': False, LOADER + 'batch_size': 8}
    assert not report_of(keep, pictures=7).errors


def test_what_never_happens_is_said():
    (said,) = report_of({'train_cfg.val_begin': 9}).warnings
    assert 'never validated' in said
    changes = {'default_hooks.checkpoint.by_epoch': True}
    (said,) = report_of(changes, SEGMENTOR).warnings
    assert 'nothing is saved before the end' in said
