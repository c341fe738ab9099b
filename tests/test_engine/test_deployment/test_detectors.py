# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Exported detectors find what mmdet finds, or are refused."""

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from run_onnx_script import run_onnx_script

from mmdat.analysis.forward import build_model
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.engine.configuration import load_config
from mmdat.engine.deployment import export, exporting
from mmdat.engine.deployment.formats import FORMATS, write_quietly
from mmdat.engine.deployment.parts import part_of
from mmdat.engine.deployment.supported_detectors import check_detector
from mmdat.engine.weights import check_fits
from mmdat.utils.errors import UserError
from mmdat.utils.packages import enter_scope

pytest.importorskip('mmdet')
pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

ROOT = Path(__file__).parents[3]
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


@cache
def config(name):
    return load_config(ROOT / 'configs' / f'{name}.py', None)


def detector(name, **options):
    """The detector of a config, small; it finds something in noise."""
    enter_scope('mmdet')
    cfg = copy.deepcopy(config(name))
    cfg.merge_from_dict({f'model.{k}': v for k, v in options.items()})
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
        # no scores of exactly 1, no boxes of a thousandth of a pixel
        if 'retina' in name or '_reg' in name:
            tensor.data *= 0.2
    return model


ATSS = dict(type='ATSSHead', num_classes=5, in_channels=16, _delete_=True)
SOFTMAX = dict(type='CrossEntropyLoss', use_sigmoid=False, _delete_=True)
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
    found, printed = run_onnx_script(
        *(path, picture, folder, 'found.npz'),
        *('--draw', folder / 'found.png'),
    )
    return dict(found), printed.splitlines()


def check_found(got, wanted):
    np.testing.assert_allclose(got['boxes'], wanted['bboxes'], atol=1e-2)
    np.testing.assert_allclose(got['scores'], wanted['scores'], atol=1e-4)
    np.testing.assert_array_equal(got['labels'], wanted['labels'])
    assert ('masks' in got) == ('masks' in wanted)
    if 'masks' in wanted:
        assert wanted['masks'].any()
        # some pixels are at the threshold
        assert (got['masks'] != wanted['masks']).mean() < 1e-3


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (
            RETINANET,
            {'test_cfg.nms_pre': 60, 'data_preprocessor.pad_size_divisor': 1},
        ),
        (MASK_RCNN, FEW),
        (CASCADE, FEW),
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
    check_found(got, wanted)


@pytest.mark.slow
def test_the_demo_model_on_a_picture(tmp_path):
    """Boxes and masks for all classes, and weights that were trained."""
    import cv2

    config, weights, picture = (
        ROOT / 'configs' / 'mask_rcnn_dat_digits.py',
        ROOT / 'demo' / 'mask_rcnn_dat_digits.safetensors',
        ROOT / 'demo' / 'pictures' / 'cat.jpg',
    )
    tool = ROOT / 'tools' / 'deployment' / 'export.py'
    path = tmp_path / 'demo.onnx'
    done = subprocess.run(
        [
            *(sys.executable, tool, config, weights, '--out', path),
            *('--shape', '160', '192', '--picture', picture),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert '1 x 3 x 160 x 192: ' in done.stdout
    small = cv2.resize(cv2.imread(str(picture)), (201, 149))
    got, _ = run_alone(path, small, tmp_path)
    model = build_model(load_config(config, None)).eval()
    check_fits(str(weights), load_checkpoint_file(weights), model)
    wanted = found_by_mmdet(model, small)
    assert len(wanted['bboxes']) > 2
    check_found(got, wanted)


REGIONS = 'roi_head.bbox_roi_extractor.roi_layer'
NONE = {'roi_head.mask_head': None, 'roi_head.mask_roi_extractor': None}
AGNOSTIC = {
    'roi_head.bbox_head.reg_class_agnostic': True,
    'roi_head.mask_head.class_agnostic': True,
}


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (RETINANET, {'test_cfg.nms.split_thr': 1}),
        (RETINANET, {'test_cfg.min_bbox_size': 12}),
        (RETINANET, {'bbox_head.type': 'PISARetinaHead'}),
        (MASK_RCNN, {**FEW, **AGNOSTIC}),
        (MASK_RCNN, {**FEW, **NONE, 'test_cfg.rcnn.max_per_img': -1}),
        (MASK_RCNN, {**FEW, f'{REGIONS}.aligned': False}),
        (CASCADE, {**FEW, f'{REGIONS}.sampling_ratio': 2}),
        (CASCADE, {**FEW, 'data_preprocessor.pad_value': 1}),
    ],
)
def test_boxes_are_selected_as_in_mmdet(name, options):
    """Without a file, since the operators are the same."""
    part = part_of(detector(name, **options))
    image = exporting.picture(1, 71, 90)
    with torch.no_grad():
        got, wanted = part.module(image), part.reference(image)
    assert len(wanted) == len(part.outputs)
    got = exporting._matched(got, wanted, '')
    assert len(wanted[0]) > 5
    for one, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-6, atol=1e-6)


def written(model, folder, shape=(64, 96)):
    """The runtime of a file that was not compared."""
    form, part = FORMATS['onnx'], part_of(model)
    image = exporting.picture(1, *shape)
    write_quietly(form, part, image, (2, 3), folder / 'a.onnx', {})
    return form.load(folder / 'a.onnx')


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (RETINANET, {'test_cfg.score_thr': 0.999}),
        # no proposals, hence no regions for RoIAlign
        (MASK_RCNN, {'test_cfg.rpn.min_bbox_size': 1000}),
    ],
)
def test_nothing_is_found(name, options, tmp_path):
    run = written(detector(name, **options), tmp_path)
    boxes, scores, labels, *masks = run(exporting.picture(1, 70, 45))
    assert boxes.shape == (0, 4) and boxes.dtype == torch.float32
    assert scores.shape == labels.shape == (0,)
    assert labels.dtype == torch.int64
    assert [mask.shape[0] for mask in masks] == [0] * (name == MASK_RCNN)


def test_equal_scores_in_another_order():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 20, 20], [1, 1, 8, 8]])
    scores = torch.tensor([0.5, 0.5, 0.2])
    wanted = [boxes, scores, torch.tensor([0, 0, 1])]
    order = torch.tensor([1, 0, 2])
    got = exporting._matched([one[order] for one in wanted], wanted, '')
    for one, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, right)


class Altered(torch.nn.Module):
    """Stands for a file with a fault."""

    def __init__(self, part, change):
        super().__init__()
        self.part, self.change = part, change

    def __call__(self, image):
        with torch.no_grad():
            return self.change(*self.part.module(image))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda b, s, n: (b + 0.1, s, n), r'\b0\.1\b'),
        (lambda b, s, n: (b, s * 0.99, n), 'PyTorch'),
        (lambda b, s, n: (b[1:], s[1:], n[1:]), 'finds .* objects'),
        (lambda b, s, n: (b, s, (n + 1) % 5), 'or other classes'),
        (lambda b, s, n: (b[:, [1, 0, 3, 2]], s, n), 'PyTorch'),
    ],
)
def test_a_wrong_file_is_refused(change, message):
    part = part_of(detector(RETINANET, **{'test_cfg.nms_pre': 60}))
    image = exporting.picture(1, 49, 64)
    with pytest.raises(UserError, match=message) as caught:
        exporting._compare(part, Altered(part, change), 'onnx', image)
    assert 'nothing was written' in str(caught.value)


def test_a_comparison_of_nothing_is_refused():
    part = part_of(detector(RETINANET, **{'test_cfg.score_thr': 0.999}))
    image = exporting.picture(1, 49, 64)
    with pytest.raises(UserError, match='--picture FILE'):
        exporting._compare(part, part.module, 'onnx', image)


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match='--format onnx'):
        export(detector(RETINANET), tmp_path / 'a.pt2', 'torch-export')


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        (RETINANET, {'test_cfg.nms.type': 'soft_nms'}, 'plain suppression'),
        (RETINANET, {'test_cfg.nms.max_num': 5}, 'has max_num'),
        (RETINANET, {'test_cfg.with_nms': False}, 'has with_nms'),
        (RETINANET, {'test_cfg.nms_pre': -1}, 'nms_pre of at least 1'),
        (RETINANET, {'bbox_head': ATSS}, 'ATSSHead.forward'),
        (RETINANET, {'bbox_head.loss_cls': SOFTMAX}, 'sigmoid scores'),
        (RETINANET, {'bbox_head.bbox_coder.clip_border': False}, 'clip_bord'),
        (
            RETINANET,
            {'bbox_head.anchor_generator.type': 'LegacyAnchorGenerator'},
            'AnchorGenerator; this one has LegacyAnchorGenerator',
        ),
        (MASK_RCNN, {'test_cfg.rpn.nms_post': 5}, 'has nms_post'),
        (MASK_RCNN, {'test_cfg.rcnn.mask_thr_binary': -1}, 'mask_thr_binary'),
        (
            MASK_RCNN,
            {'roi_head.bbox_roi_extractor.roi_layer.pool_mode': 'max'},
            'pool_mode=avg',
        ),
        (
            CASCADE,
            {'roi_head.mask_roi_extractor.type': 'GenericRoIExtractor'},
            'SingleRoIExtractor; this one has GenericRoIExtractor',
        ),
    ],
)
def test_what_is_not_computed_is_refused(name, options, message):
    model = detector(name, **options)
    with pytest.raises(UserError, match=message) as caught:
        part_of(model)
    assert '\n' not in str(caught.value)


def test_other_detectors_are_refused():
    from mmdet.models import DINO, RTMDet

    for kind in (DINO, RTMDet):
        model = kind.__new__(kind)
        torch.nn.Module.__init__(model)
        model.bbox_head = torch.nn.Identity()
        model.data_preprocessor = torch.nn.Identity()
        with pytest.raises(UserError, match='--part backbone'):
            check_detector(model)
