# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A normalisation or padding that is not for the data."""

from copy import deepcopy

import family
import pytest

from mmdat.engine.data_check.parts import parts_of
from mmdat.engine.data_check.preprocessing import (
    check_padding,
    check_preprocessing,
)
from mmdat.engine.data_check.report import Report

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')
PLACES = {
    'mask_rcnn_dat_digits': 'model.data_preprocessor',
    'upernet_dat_digits': 'model.data_preprocessor',
    'classifier_dat_digits': 'data_preprocessor',
}
UNIT = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def report_of(name, changes=(), transform=None):
    cfg, report = deepcopy(family.load(name)), Report()
    for key, value in dict(changes).items():
        cfg.merge_from_dict({f'{PLACES[name]}.{key}': value})
    if transform is not None:
        cfg.train_dataloader.dataset.pipeline.insert(1, transform)
    check_preprocessing(cfg, parts_of(cfg, 'train'), report)
    return report


@pytest.mark.parametrize('name', PLACES)
def test_values_of_another_range(name):
    (said,) = report_of(name, UNIT).errors
    assert f'{PLACES[name]}.mean=[0.485' in said
    assert 'multiply both by 255' in said
    # Transforms that may scale the pictures are trusted.
    assert not report_of(name, UNIT, dict(type='MyToFloat')).errors
    whole = dict(mean=[0, 0, 0], std=[255, 255, 255])
    assert not report_of(name, whole).errors


@pytest.mark.parametrize('name', PLACES)
def test_a_spread_of_zero(name):
    (said,) = report_of(name, dict(std=[0, 1, 1])).errors
    assert 'std must be above 0' in said


@pytest.mark.parametrize('name', PLACES)
def test_colours_in_another_order(name):
    key = 'bgr_to_rgb' if 'model' in PLACES[name] else 'to_rgb'
    (said,) = report_of(name, {key: False}).warnings
    assert 'mean has red first' in said and said.endswith(f'set {key}=True.')
    turned = dict(mean=[103.53, 116.28, 123.675])
    (said,) = report_of(name, turned).warnings
    assert 'mean has blue first' in said
    assert not report_of(name, {key: False, **turned}).warnings


def test_a_model_that_is_not_normalised():
    name = 'mask_rcnn_dat_digits'
    cfg, report = deepcopy(family.load(name)), Report()
    cfg.model.data_preprocessor = dict(type='DetDataPreprocessor')
    check_preprocessing(cfg, parts_of(cfg, 'train'), report)
    assert not report.warnings  # it starts from random weights
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='x.pth')
    check_preprocessing(cfg, parts_of(cfg, 'train'), report)
    assert 'no mean and std' in report.warnings[0]


def test_maps_padded_with_a_class():
    cfg, report = deepcopy(family.load('upernet_dat_digits')), Report()
    cfg.model.data_preprocessor.update(size=(64, 64), seg_pad_val=0)
    check_padding(cfg, 255, 'train_dataloader.dataset', report)
    assert 'seg_pad_val is 0' in report.errors[0]
