# Copyright (c) mmdat contributors. Apache-2.0 licence.
import golden_rule
import pytest
import released
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

pytest.importorskip('mmpretrain')


def classifier(arch, channels, **backbone):
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmdat.DAT', arch=arch, out_indices=(3,), **backbone
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=1000,
                in_channels=channels,
                loss=dict(type='CrossEntropyLoss'),
            ),
        )
    )


@pytest.mark.parametrize(
    ('name', 'channels'),
    [('v1-dat_tiny-224x224', 768), ('pp-dat_tiny-224x224', 512)],
)
def test_gives_the_authors_logits(name, channels, tmp_path):
    case = golden_rule.case(name)
    path = tmp_path / 'released.pth'
    torch.save(dict(model=released.state_dict(case.keys)), path)
    model = classifier(released.arch_of(case.keys), channels).eval()
    load_checkpoint(model, str(path), strict=True)
    images = torch.from_numpy(golden_rule.image(case.input_shape))
    with torch.no_grad():
        logits = model(images, mode='tensor')
    wanted = torch.from_numpy(golden_rule.golden(name)['logits'])
    assert logits.shape == wanted.shape
    worst = (logits - wanted).abs().max() / wanted.abs().max()
    assert worst <= 2e-5


def test_learns():
    small = dict(
        embed_dims=[16, 32, 32, 64], depths=[1] * 4, num_heads=[1, 2, 2, 4]
    )
    model = classifier(small, 64).train()
    from mmpretrain.structures import DataSample

    truth = [DataSample().set_gt_label(i) for i in (3, 7)]
    losses = model(torch.rand(2, 3, 64, 80), truth, mode='loss')
    losses['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
