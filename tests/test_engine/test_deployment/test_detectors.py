# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Exported detectors find what mmdet finds, or are refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from mmdat.engine.configuration import load_config
from mmdat.engine.deployment import export, exporting
from mmdat.engine.deployment.formats import FORMATS
from mmdat.engine.deployment.parts import part_of
from mmdat.engine.deployment.supported_detectors import check_detector
from mmdat.utils.errors import UserError
from mmdat.utils.packages import enter_scope

pytest.importorskip('mmdet')
pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / 'configs'
RETINANET = 'retinanet_dat_t_coco'
MASK_RCNN = 'mask_rcnn_dat_t_coco'
CASCADE = 'cascade_mask_rcnn_dat_t_coco'

BACKBONE = dict(
    type='DAT',
    arch=dict(embed_dims=16, depths=1, num_heads=2, mlp_ratio=1),
    attentions=['N', 'D', 'D', 'D'],
    img_size=64,
    neighborhood_size=3,
)
# Fewer channels, layers and boxes.
SMALL = dict(
    in_channels=16,
    feat_channels=16,
    out_channels=16,
    conv_out_channels=16,
    fc_out_channels=16,
    num_classes=5,
    stacked_convs=1,
    num_shared_convs=1,
    num_convs=1,
)


def shrink(part):
    if isinstance(part, dict):
        if part.get('type') == 'SingleRoIExtractor':
            part.finest_scale = 4  # small pictures use all maps
        for name, value in part.items():
            if name in SMALL:
                part[name] = SMALL[name]
            else:
                shrink(value)
    elif isinstance(part, list):
        for one in part:
            shrink(one)


def detector(name, **options):
    """The detector of a config, small; it finds something in noise."""
    enter_scope('mmdet')
    path = CONFIGS / f'{name}.py'
    cfg = load_config(path, {f'model.{k}': v for k, v in options.items()})
    model = cfg.model
    stages = model.backbone.get('out_indices', (0, 1, 2, 3))
    model.backbone = ConfigDict(BACKBONE, out_indices=stages)
    model.neck.update(
        in_channels=[16 * 2**stage for stage in stages], out_channels=16
    )
    for part in ('bbox_head', 'rpn_head', 'roi_head'):
        shrink(model.get(part))
    generator = torch.manual_seed(0)
    model = MODELS.build(model).eval()
    for name, tensor in model.named_parameters():
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 9
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data += 0.5 * noise / fan_in**0.5
        if 'bbox_head.retina' in name:  # no scores of exactly 1
            tensor.data *= 0.2
    return model


FEW = {'test_cfg.rpn.nms_pre': 60, 'test_cfg.rpn.max_per_img': 30}


def found_by_mmdet(model, picture):
    """Boxes, scores, labels and masks in the picture (H, W, 3), in bytes."""
    from mmdet.structures import DetDataSample

    size = picture.shape[:2]
    meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    with torch.no_grad():
        samples = model.test_step(
            dict(inputs=[image], data_samples=[DetDataSample(metainfo=meta)])
        )
    found = samples[0].pred_instances
    return {name: found[name].numpy() for name in found.keys()}  # noqa: SIM118


def run_alone(path, picture, folder):
    """What the script finds, and what it prints."""
    np.save(folder / 'picture.npy', picture)
    done = subprocess.run(
        [
            *(sys.executable, ROOT / 'tools' / 'deployment' / 'run_onnx.py'),
            *(path, folder / 'picture.npy', '--out', folder / 'found.npz'),
            *('--draw', folder / 'found.png'),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / 'found.npz')), done.stdout.splitlines()


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (RETINANET, {'test_cfg.nms_pre': 60}),
        (MASK_RCNN, FEW),
        (CASCADE, FEW),
        (
            'mask_rcnn_dat_digits',
            {**FEW, 'data_preprocessor.pad_size_divisor': 1},
        ),
    ],
)
def test_a_detector_by_numpy_alone(name, options, tmp_path):
    model = detector(name, **options)
    done = export(model, tmp_path / 'a.onnx', shape=(64, 96))
    assert [s[0] for s in done.checks] == [1, 1, 1]
    picture = np.random.default_rng(0).integers(0, 256, (57, 91, 3), np.uint8)
    got, lines = run_alone(done.path, picture, tmp_path)
    wanted = found_by_mmdet(model, picture)
    assert len(lines) == len(wanted['bboxes']) > 5
    assert len(np.unique(wanted['labels'])) > 1
    np.testing.assert_allclose(got['boxes'], wanted['bboxes'], atol=1e-2)
    np.testing.assert_allclose(got['scores'], wanted['scores'], atol=1e-4)
    np.testing.assert_array_equal(got['labels'], wanted['labels'])
    assert ('masks' in got) == ('masks' in wanted)
    if 'masks' in wanted:
        assert wanted['masks'].any()
        # some pixels are at the threshold
        assert (got['masks'] != wanted['masks']).mean() < 1e-4
