# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Grad-CAM, against the formula, and that channels are where they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdat.utils.errors import UserError
from mmdat.visualization import find, load_model, load_picture
from mmdat.visualization.findings import class_names
from mmdat.visualization.grad_cam import cam_figure, grad_cam

ROOT = Path(__file__).parents[2]
NAMES = 'classifier', 'upernet', 'mask_rcnn'


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('picture') / 'picture.png'
    noise = np.random.default_rng(0).integers(0, 255, (9, 13, 3), np.uint8)
    Image.fromarray(noise).resize((130, 90)).save(path)
    return path


def build(name, path):
    """A model with weights of its own, and what it sees."""
    for package in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(package)
    torch.manual_seed(1)
    model = load_model(str(ROOT / f'configs/{name}_dat_digits.py'))
    if name == 'mask_rcnn':
        torch.nn.init.normal_(model.roi_head.bbox_head.fc_cls.weight)
        model.test_cfg.rcnn.score_thr = 0.0
    return model, load_picture(model, path)


def by_hand(activation, slope):
    """relu(sum over channels of mean slope times activation), (B, C, H, W)."""
    total = np.zeros(activation.shape[2:])
    for channel in range(activation.shape[1]):
        total += slope[0, channel].mean() * activation[0, channel]
    return total.clip(min=0) / total.max()


@pytest.mark.parametrize('target', [None, 3])
def test_the_formula(target, path):
    model, picture = build('classifier', path)
    (feature,) = model.backbone(picture.inputs)
    feature.retain_grad()
    logits = model.head(model.neck((feature,)))
    number = int(logits.argmax()) if target is None else target
    logits[0, number].backward()
    cam = grad_cam(model, picture, target)
    np.testing.assert_allclose(
        cam.values,
        by_hand(feature.detach().numpy(), feature.grad.numpy()),
        atol=1e-5,
    )
    assert cam.target == number and cam.name == str(number)


@pytest.mark.parametrize('layer', ['norm1', 'norm2', 'attn', 'mlp', ''])
def test_layers_inside_have_their_channels_last(layer, path):
    """Maps (B, H, W, C), and rows of pixels (B, H W, C)."""
    model, picture = build('classifier', path)
    name = f'backbone.stages.2.blocks.1.{layer}'.rstrip('.')
    kept = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda *a: kept.append(a[-1]))
    logits = model(picture.inputs, list(picture.samples), mode='tensor')
    handle.remove()
    (slope,) = torch.autograd.grad(logits[0, 5], kept[0])
    height, width = 4, 4  # 64 pixels at stride 16
    activation, slope = (
        one.detach().reshape(1, height, width, -1).permute(0, 3, 1, 2).numpy()
        for one in (kept[0], slope)
    )
    cam = grad_cam(model, picture, 5, name)
    np.testing.assert_allclose(
        cam.values, by_hand(activation, slope), atol=1e-5
    )
    # Pixel i of stride 16 is at 16 i in DAT++; the picture is 130 x 90, seen
    # as 64 x 64.
    left, right, bottom, top = cam.extent
    assert left == pytest.approx((-8 + 0.5) * 130 / 64 - 0.5)
    assert right == pytest.approx((56 + 0.5) * 130 / 64 - 0.5)
    assert bottom == pytest.approx((56 + 0.5) * 90 / 64 - 0.5)
    assert not module._forward_hooks


@pytest.mark.parametrize('name', NAMES)
def test_every_task(name, path):
    model, picture = build(name, path)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as frozen stages are
    cam = grad_cam(model, picture)
    assert cam.values.max() == 1 and cam.values.min() >= 0
    assert cam.values.std() > 0
    figure = cam_figure(picture.image, cam)
    assert figure.axes[1].get_title() == f'class {cam.name}, backbone'
    found = find(model, picture, score=0.0)
    if name == 'classifier':
        assert found.names[0] == cam.name
        assert found.scores == sorted(found.scores, reverse=True)
        assert len(found.names) == 5
    elif name == 'upernet':
        assert found.label_map.shape == (90, 130)
        assert class_names(model.cfg) == ('photograph', *'0123456789')
        likeliest = np.bincount(found.label_map.ravel()).argmax()
        assert found.names[likeliest] in class_names(model.cfg)
    else:
        assert found.masks.shape == (len(found.boxes), 90, 130)
        assert set(found.names) <= set('0123456789')
        mask = found.objects_mask((90, 130))
        np.testing.assert_array_equal(mask, found.masks.any(0))


@pytest.mark.parametrize(
    ('target', 'layer', 'message'),
    [
        ('x', None, 'There is no class x'),
        (99, None, 'must be in 0 to 9; got 99'),
        (1, 'backbone.norm9', 'no layer backbone.norm9; a block is called'),
        (1, 'head', 'needs a layer that gives a map; head gives'),
    ],
)
def test_what_cannot_be_drawn(target, layer, message, path):
    model, picture = build('classifier', path)
    with pytest.raises(UserError, match=message):
        grad_cam(model, picture, target, layer)
