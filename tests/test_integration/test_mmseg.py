# Copyright (c) mmdat contributors. Apache-2.0 licence.
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from mmdat.engine.configuration import load_config

pytest.importorskip('mmseg')
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def segmentor():
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    cfg = load_config(str(ROOT / 'configs/upernet_dat_digits.py'))
    init_default_scope('mmseg')
    torch.manual_seed(0)
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def samples(*sizes):
    from mmseg.structures import SegDataSample

    made = []
    for size in sizes:
        sample = SegDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)
        )
        labels = torch.randint(0, 11, (1, *size))
        sample.gt_sem_seg = PixelData(data=labels)
        made.append(sample)
    return made


def test_learns(segmentor):
    segmentor.train()
    sizes = (64, 96), (64, 96)
    losses = segmentor(torch.rand(2, 3, 64, 96), samples(*sizes), mode='loss')
    total = sum(v for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert total.isfinite()
    for name, parameter in segmentor.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_predicts_at_the_size_of_the_picture(segmentor):
    segmentor.eval()
    with torch.no_grad():
        out = segmentor(
            torch.rand(1, 3, 75, 101), samples((75, 101)), mode='predict'
        )
    labels = out[0].pred_sem_seg.data
    assert labels.shape == (1, 75, 101)
    assert labels.min() >= 0 and labels.max() < 11
