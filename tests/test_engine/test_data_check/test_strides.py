# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Strides and channels of a detector that are not those of its pyramid."""

from copy import deepcopy

import family
import pytest

from mmdat.engine.data_check.report import Report
from mmdat.engine.data_check.strides import check_strides

pytest.importorskip('mmdet')
DETECTOR = 'mask_rcnn_dat_digits'
ALL = [4, 8, 16, 32]
RPN = 'model.rpn_head.'
ROI = 'model.roi_head.'


def errors(changes, strides=ALL, name=DETECTOR):
    cfg, report = deepcopy(family.load(name)), Report()
    cfg.merge_from_dict(changes)
    check_strides(cfg, strides, report)
    assert not report.warnings
    return report.errors


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            {RPN + 'anchor_generator.strides': [8, 16, 32, 64, 128]},
            'strides is [8, 16, 32, 64, 128] and the levels',
        ),
        ({'model.neck.num_outs': 4}, 'have the strides [4, 8, 16, 32], so'),
        ({'model.neck.num_outs': 6}, '[4, 8, 16, 32, 64, 128], so'),
        (
            {ROI + 'bbox_roi_extractor.featmap_strides': [8, 16, 32, 64]},
            'so set it to [4, 8, 16, 32].',
        ),
        ({'model.neck.out_channels': 32}, 'rpn_head.in_channels=64, model'),
        ({ROI + 'bbox_head.in_channels': 32}, 'bbox_head.in_channels=32, so'),
        ({ROI + 'mask_roi_extractor.out_channels': 9}, 'out_channels=9, so'),
    ],
)
def test_levels_of_another_stride_or_width(changes, words):
    (said,) = errors(changes)
    assert words in said


def test_fewer_maps_shift_the_levels():
    assert 'the strides [8, 16, 32, 64, 128]' in errors({}, [8, 16, 32])[0]
    shift = {'model.neck.start_level': 1, 'model.neck.num_outs': 5}
    assert '[8, 16, 32, 64, 128]' in errors(shift)[0]
    name = 'retinanet_dat_t_coco'
    start = family.load(name).model.neck.get('start_level', 0)
    assert not errors({'model.neck.start_level': 1 + start}, ALL, name) or (
        start
    )


@pytest.mark.parametrize(
    'changes',
    [
        {'model.neck.type': 'TheirPyramid', 'model.neck.num_outs': 4},
        {'model.neck.end_level': 2, 'model.neck.num_outs': 3},
        {RPN + 'anchor_generator.strides': [[4, 4], 8, 16, 32, 64]},
        {ROI + 'mask_roi_extractor.featmap_strides': [4]},
    ],
)
def test_what_fits_or_is_not_known(changes):
    assert not errors(changes)


def test_necks_in_a_row():
    cfg, report = deepcopy(family.load(DETECTOR)), Report()
    cfg.model.neck = [cfg.model.neck, dict(type='BFP', in_channels=64)]
    check_strides(cfg, ALL, report)
    assert not report.errors
    check_strides(cfg, [8, 16, 32], report)
    assert report.errors
