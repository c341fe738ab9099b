# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Refuses detectors that compute something else than `detectors` does.

mmdet has many heads that inherit from those of Faster R-CNN and RetinaNet and
replace some steps. A head may have any layers; its selection of boxes must be
that of the base class, with known settings.
"""

from importlib.util import find_spec
from typing import Any

from torch import nn

from ...utils.errors import UserError

_DENSE = {'score_thr', 'nms_pre', 'min_bbox_size', 'nms', 'max_per_img'}
_RPN = _DENSE - {'score_thr'}
_ROI = {'score_thr', 'nms', 'max_per_img', 'mask_thr_binary'}
_NMS = {'type', 'iou_threshold', 'split_thr'}


def check_detector(model: nn.Module) -> None:
    """Raises UserError unless the detector can be exported as a whole."""
    if find_spec('torchvision') is None:
        raise UserError(
            'Whole detectors need torchvision to be exported; install with '
            'pip install torchvision.'
        )
    from mmdet.models.data_preprocessors import DetDataPreprocessor
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector

    two = hasattr(model, 'roi_head')
    _same(model, TwoStageDetector if two else SingleStageDetector, 'predict')
    _same(model.data_preprocessor, DetDataPreprocessor, 'forward')
    if two:
        if not model.with_rpn:
            _refuse('a region proposal network', 'none')
        _check_dense(model.rpn_head, RPNHead, _RPN)
        _check_regions(model.roi_head)
    else:
        _check_dense(model.bbox_head, BaseDenseHead, _DENSE)


def listed(layers: nn.Module) -> list[nn.Module]:
    """Returns the layers of each stage; a standard head has one stage."""
    return list(layers) if isinstance(layers, nn.ModuleList) else [layers]


def _refuse(rule: str, got: object) -> None:
    raise UserError(
        f'--part whole supports detectors with {rule}; this one has {got}, so '
        f'use --part backbone or --part neck.'
    )


def _same(part: nn.Module, base: type, *methods: str) -> None:
    """Refuses a class that replaces methods of its base."""
    if not isinstance(part, base):
        _refuse(f'a {base.__name__}', type(part).__name__)
    for name in methods:
        if getattr(type(part), name) is not getattr(base, name):
            _refuse(f'{base.__name__}.{name}', f'{type(part).__name__}.{name}')


def _exactly(part: object, kind: type, **settings: Any) -> None:
    """Refuses objects of other classes or with other settings."""
    if type(part) is not kind:
        _refuse(kind.__name__, type(part).__name__)
    for name, value in settings.items():
        got = getattr(part, name, value)
        if got != value:
            _refuse(f'{name}={value} of {kind.__name__}', f'{name}={got}')


def _check_settings(cfg: Any, known: set[str], *needed: str) -> None:
    cfg = cfg or {}
    unknown = sorted(set(cfg) - known)
    if unknown:
        _refuse(f'the test settings {", ".join(sorted(known))}', unknown[0])
    for name in needed:
        if name not in cfg:
            _refuse(f'the test setting {name}', 'none')
    nms = cfg['nms'] or {}
    strange = sorted(set(nms) - _NMS)
    if nms.get('type', 'nms') != 'nms' or 'iou_threshold' not in nms:
        _refuse(
            'plain suppression of boxes, nms=dict(type="nms", '
            'iou_threshold=...)',
            f'nms={dict(nms)}',
        )
    if strange:
        _refuse(f'the settings {", ".join(sorted(_NMS))} of nms', strange[0])


def _check_coder(coder: object) -> None:
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    _exactly(
        coder,
        DeltaXYWHBBoxCoder,
        clip_border=True,
        add_ctr_clamp=False,
        use_box_type=False,
    )


def _check_dense(head: nn.Module, base: type, known: set[str]) -> None:
    from mmdet.models.dense_heads import AnchorHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.task_modules.prior_generators import AnchorGenerator

    _same(head, AnchorHead, 'forward')
    _same(head, BaseDenseHead, 'predict', 'predict_by_feat')
    _same(head, base, '_predict_by_feat_single', '_bbox_post_process')
    _exactly(head.prior_generator, AnchorGenerator, use_box_type=False)
    _check_coder(head.bbox_coder)
    if not head.use_sigmoid_cls or getattr(
        head.loss_cls, 'custom_cls_channels', False
    ):
        _refuse('sigmoid scores of anchors', type(head.loss_cls).__name__)
    needed = ('nms_pre', 'nms', 'max_per_img', *({'score_thr'} & known))
    _check_settings(head.test_cfg, known, *needed)
    for name in ('nms_pre', 'max_per_img'):
        if head.test_cfg[name] < 1:
            _refuse(f'{name} of at least 1', head.test_cfg[name])
    if 'score_thr' in known and head.test_cfg.score_thr < 0:
        _refuse('score_thr of at least 0', head.test_cfg.score_thr)


def _check_regions(head: nn.Module) -> None:
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.bbox_heads import BBoxHead
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    steps = ['predict', 'predict_bbox', '_bbox_forward']
    if head.with_mask:
        steps += ['predict_mask', '_mask_forward']
    base = StandardRoIHead
    if isinstance(head, CascadeRoIHead):
        base, steps = CascadeRoIHead, [*steps, '_refine_roi']
    _same(head, base, *steps)
    if head.with_shared_head:
        _refuse('heads without a shared one', 'shared_head')
    _check_settings(head.test_cfg, _ROI, 'score_thr', 'nms', 'max_per_img')
    if head.test_cfg.score_thr < 0:
        _refuse('score_thr of at least 0', head.test_cfg.score_thr)
    for layer in listed(head.bbox_head):
        _same(
            layer,
            BBoxHead,
            'predict_by_feat',
            '_predict_by_feat_single',
            'regress_by_class',
        )
        _check_coder(layer.bbox_coder)
        if layer.custom_cls_channels or layer.custom_activation:
            _refuse('softmax scores', type(layer.loss_cls).__name__)
        if not (layer.with_cls and layer.with_reg):
            _refuse('a head for classes and boxes', 'one of them')
    _check_extractors(head.bbox_roi_extractor)
    if head.with_mask:
        if head.test_cfg.get('mask_thr_binary', -1) < 0:
            _refuse('mask_thr_binary of at least 0', 'a negative one or none')
        for layer in listed(head.mask_head):
            _same(
                layer,
                FCNMaskHead,
                'predict_by_feat',
                '_predict_by_feat_single',
            )
        _check_extractors(head.mask_roi_extractor)


def _check_extractors(extractors: nn.Module) -> None:
    from mmcv.ops import RoIAlign
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    for extractor in listed(extractors):
        _exactly(extractor, SingleRoIExtractor)
        for layer in extractor.roi_layers:
            _exactly(layer, RoIAlign, pool_mode='avg')
