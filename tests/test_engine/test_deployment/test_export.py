# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Exported files agree with the model, or are not written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from run_onnx_script import run_onnx_script
from torch import nn

from mmdat.engine.deployment import export, exporting, parts
from mmdat.engine.deployment.formats import FORMATS
from mmdat.utils.errors import UserError
from mmdat.utils.packages import enter_scope

ROOT = Path(__file__).parents[3]

BACKBONE = dict(
    type='DAT',
    arch=dict(embed_dims=16, depths=1, num_heads=2, mlp_ratio=1),
    attentions=['N', 'D', 'D', 'D'],
    img_size=64,
    neighborhood_size=3,
)
MEAN = dict(mean=[120.0, 110, 100], std=[60.0, 50, 40])


def classifier():
    pytest.importorskip('mmpretrain')
    enter_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(BACKBONE, out_indices=[3]),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=128),
            data_preprocessor=dict(MEAN, to_rgb=True),
        )
    )
    return scattered(model)


def segmentor(**test_cfg):
    pytest.importorskip('mmseg')
    enter_scope('mmseg')
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=BACKBONE,
            decode_head=dict(
                type='UPerHead',
                in_channels=[16, 32, 64, 128],
                in_index=[0, 1, 2, 3],
                channels=8,
                num_classes=4,
                norm_cfg=dict(type='SyncBN'),
                align_corners=False,
            ),
            data_preprocessor=dict(
                MEAN, type='SegDataPreProcessor', bgr_to_rgb=True
            ),
            test_cfg=ConfigDict(test_cfg or dict(mode='whole')),
        )
    )
    return scattered(model)


def scattered(model):
    """Every parameter and statistic matters."""
    generator = torch.manual_seed(0)
    for tensor in [*model.parameters()]:
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=generator)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def run_alone(model, picture, folder):
    """What the script makes of a picture (H, W, 3), and what it prints."""
    out, printed = run_onnx_script(model, picture, folder, 'out.npy')
    return torch.from_numpy(out), printed


def preprocessed(model, picture):
    """The picture as the package gives it to its model."""
    batch = [torch.from_numpy(picture.transpose(2, 0, 1).copy())]
    return model.data_preprocessor(dict(inputs=batch))['inputs']


@pytest.fixture(autouse=True, scope='module')
def _runtime():
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')


def test_a_classifier_by_numpy_alone(tmp_path):
    model = classifier()
    done = export(model, tmp_path / 'a.onnx', shape=(64, 64))
    assert [s[0] for s in done.checks] == [2, 1, 3]
    assert any(side % 2 for s in done.checks for side in s[2:])
    picture = np.random.default_rng(0).integers(0, 256, (57, 91, 3), np.uint8)
    got, out = run_alone(done.path, picture, tmp_path)
    with torch.no_grad():
        wanted = model(preprocessed(model, picture), mode='tensor')
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    first = out.splitlines()[-5]
    assert first.startswith(f'class {wanted.argmax().item()}: ')


def test_a_segmentor_in_crops(tmp_path):
    model = segmentor(mode='slide', crop_size=(48, 64), stride=(32, 40))
    done = export(model, tmp_path / 'a.onnx')
    assert done.crop == (48, 64) and len(done.checks) == 3
    picture = np.random.default_rng(0).integers(0, 256, (75, 131, 3), np.uint8)
    got, _ = run_alone(done.path, picture, tmp_path)
    metas = [dict(img_shape=(75, 131), ori_shape=(75, 131))]
    with torch.no_grad():
        wanted = model.slide_inference(preprocessed(model, picture), metas)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_whole_segmentor_at_any_size(tmp_path):
    import onnx

    done = export(segmentor(), tmp_path / 'a.onnx', shape=(64, 80))
    assert len(done.checks) == 3
    model = onnx.load(done.path)
    assert {node.domain for node in model.graph.node} == {''}
    notes = {p.key: p.value for p in model.metadata_props}
    assert notes['opset'] == str(model.opset_import[0].version)
    assert json.loads(notes['dynamic']) == [0, 2, 3]


def test_pools_as_products():
    for size, to in (((7, 10), (3, 6)), ((2, 5), (6, 2)), ((6, 6), (2, 3))):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(
            parts._AdaptivePool(to)(x),
            nn.functional.adaptive_avg_pool2d(x, to),
        )


def test_a_file_that_is_wrong_is_not_written(tmp_path, monkeypatch):
    form = FORMATS['onnx']
    monkeypatch.setitem(
        exporting.FORMATS,
        'onnx',
        form._replace(
            load=lambda path: lambda x: [1.01 * o for o in form.load(path)(x)]
        ),
    )
    with pytest.raises(UserError, match='PyTorch by .* at 2 x 3 x 64 x 64'):
        export(classifier(), tmp_path / 'a.onnx', shape=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_what_an_exporter_cannot_do_is_one_sentence(tmp_path, monkeypatch):
    model = classifier()
    model.head.forward = lambda x: torch.linalg.svd(x[0])[0]
    with pytest.raises(
        UserError, match='cannot export this model: '
    ) as caught:
        export(model, tmp_path / 'a.onnx', shape=(64, 64))
    assert '\n' not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(form='tflite'), '--format must be one of onnx'),
        (dict(form='torch-export'), 'must end in .pt2'),
        (dict(part='tail'), '--part must be one of whole'),
    ],
)
def test_what_is_asked_for_wrongly(kwargs, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export(classifier(), tmp_path / 'a.onnx', **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    'form',
    ['torch-export', pytest.param('aoti', marks=pytest.mark.long)],
)
def test_programs_of_pytorch(form, tmp_path):
    model = classifier()
    done = export(model, tmp_path / 'a.pt2', form, 'backbone', (64, 96))
    assert len(done.checks) == 3
