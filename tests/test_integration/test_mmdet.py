# Copyright (c) mmdat contributors. Apache-2.0 licence.
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdat.engine.configuration import load_config

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def detector():
    from mmdet.registry import MODELS

    cfg = load_config(str(ROOT / 'configs/mask_rcnn_dat_digits.py'))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


def batch(detector, sizes):
    from mmdet.testing import demo_mm_inputs

    data = demo_mm_inputs(
        len(sizes),
        sizes,
        num_items=[3] * len(sizes),
        num_classes=10,
        with_mask=True,
        use_box_type=True,
    )
    return detector.data_preprocessor(data, True)


def test_learns_from_pictures_of_different_sizes(detector):
    detector.train()
    data = batch(detector, [(3, 97, 128), (3, 64, 75)])
    losses = detector(**data, mode='loss')
    total = sum(
        v if torch.is_tensor(v) else sum(v)
        for k, v in losses.items()
        if 'loss' in k
    )
    total.backward()
    assert total.isfinite()
    for name, parameter in detector.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_predicts(detector):
    detector.eval()
    with torch.no_grad():
        results = detector(**batch(detector, [(3, 97, 128)]), mode='predict')
    found = results[0].pred_instances
    assert len(found) and found.masks.shape[1:] == (97, 128)


@pytest.mark.parametrize('kind', ['DAT', 'mmdat.DAT'])
def test_replaces_the_backbone_of_a_stock_config(kind):
    from mmdet.registry import MODELS

    cfg = Config(
        dict(
            model=dict(
                type='RetinaNet',
                data_preprocessor=dict(type='DetDataPreprocessor'),
                backbone=dict(type=kind, arch='dat_t', out_indices=(1, 2, 3)),
                neck=dict(
                    type='FPN',
                    in_channels=[192, 384, 768],
                    out_channels=16,
                    num_outs=3,
                ),
                bbox_head=dict(
                    type='RetinaHead',
                    num_classes=4,
                    in_channels=16,
                    feat_channels=16,
                    anchor_generator=dict(
                        type='AnchorGenerator',
                        octave_base_scale=4,
                        scales_per_octave=1,
                        ratios=[1.0],
                        strides=[8, 16, 32],
                    ),
                    bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
                ),
                test_cfg=dict(
                    nms_pre=10,
                    score_thr=0.0,
                    nms=dict(type='nms', iou_threshold=0.5),
                    max_per_img=5,
                ),
            )
        )
    )
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model).eval()
    levels = model.extract_feat(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in levels] == [
        (16, 8, 12),
        (16, 4, 6),
        (16, 2, 3),
    ]
