# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Metrics that could not be computed are told before the training."""

from copy import deepcopy

import family
import pytest

from mmdat.engine.data_check.metrics import check_best, check_evaluators
from mmdat.engine.data_check.report import Report

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')
DETECTOR = 'mask_rcnn_dat_digits'
SEGMENTOR = 'upernet_dat_digits'
CLASSIFIER = 'classifier_dat_digits'


def errors(name, **changes):
    """Errors of a config with these changes, one per line."""
    cfg, report = deepcopy(family.load(name)), Report()
    cfg.merge_from_dict(
        {key.replace('__', '.'): value for key, value in changes.items()}
    )
    check_evaluators(cfg, 'val', report)
    check_best(cfg, report)
    return '\n'.join(report.errors)


def test_more_ranks_than_classes():
    assert 'val_evaluator.topk must not be above' in errors(
        CLASSIFIER, val_evaluator__topk=(1, 50)
    )
    head = dict(model__head__topk=(1, 11))
    assert not errors(CLASSIFIER, **head)  # not used
    said = errors(CLASSIFIER, model__head__cal_acc=True, **head)
    assert 'model.head.topk' in said and 'has 11 and the model has 10' in said


def test_masks_of_a_detector_of_boxes():
    cfg = deepcopy(family.load(DETECTOR))
    del cfg.model.roi_head['mask_head']
    report = Report()
    check_evaluators(cfg, 'val', report)
    assert "'segm', which needs masks" in report.errors[0]
    said = errors('retinanet_dat_t_coco', val_evaluator__metric='segm')
    assert "'segm', which needs masks" in said


def test_names_of_metrics():
    said = errors(DETECTOR, val_evaluator__metric=['bbox', 'segmm'])
    assert "proposal_fast; got 'segmm'" in said
    said = errors(DETECTOR, val_evaluator__metric_items=['mAP', 'mAP_55'])
    assert "AR_l@1000; got 'mAP_55'" in said
    assert not errors(DETECTOR, val_evaluator__metric_items=['AR@100'])
    said = errors(SEGMENTOR, val_evaluator__iou_metrics=['mIoU', 'iou'])
    assert "mFscore; got 'iou'" in said


@pytest.mark.parametrize(
    ('name', 'wrong', 'right'),
    [
        (DETECTOR, 'bbox_mAP', 'coco/segm_mAP_50'),
        (SEGMENTOR, 'IoU', ['aAcc', 'mAcc']),
        (CLASSIFIER, 'accuracy', 'accuracy/top1'),
        (CLASSIFIER, ['accuracy/top1', 'accuracy/top5'], 'auto'),
    ],
)
def test_the_best_checkpoint_is_by_a_metric_that_is_there(name, wrong, right):
    key = 'default_hooks__checkpoint__save_best'
    hook = dict(default_hooks__checkpoint__type='CheckpointHook')
    said = errors(name, **hook, **{key: wrong})
    last = wrong if isinstance(wrong, str) else wrong[-1]
    assert f'got {last!r}' in said and 'which computes' in said
    assert not errors(name, **hook, **{key: right})


def test_boxes_only_leave_no_best_mask():
    cfg, report = deepcopy(family.load(DETECTOR)), Report()
    cfg.val_evaluator.metric = 'bbox'
    check_best(cfg, report)
    (said,) = report.warnings
    assert not report.errors
    assert "got 'coco/segm_mAP', so no best checkpoint is kept" in said


def test_metrics_that_are_not_known_are_left_alone():
    cfg, report = deepcopy(family.load(CLASSIFIER)), Report()
    cfg.val_evaluator = [cfg.val_evaluator, dict(type='TheirMetric')]
    cfg.default_hooks.checkpoint.save_best = 'theirs/best'
    check_evaluators(cfg, 'val', report)
    check_best(cfg, report)
    assert not report.errors
