# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A spot painted on an image file is found again after each pipeline."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmdat.engine.configuration import load_config
from mmdat.utils.errors import UserError
from mmdat.visualization import load_model, load_picture, record

for package in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(package)
CONFIGS = Path(__file__).parents[2] / 'configs'
CONFIGS_OF = dict(
    det='mask_rcnn_dat_digits.py',
    seg='upernet_dat_digits.py',
    cls='classifier_dat_digits.py',
)
LOAD = dict(type='LoadImageFromFile')
PIPELINES = {
    'as it is': [LOAD],
    'enlarged': [LOAD, dict(type='Resize', scale=(333, 250), keep_ratio=True)],
    'stretched': [LOAD, dict(type='Resize', scale=(96, 160))],
    'cropped': [
        LOAD,
        dict(type='ResizeEdge', scale=128, edge='short'),
        dict(type='CenterCrop', crop_size=96),
    ],
    'flipped': [
        LOAD,
        dict(type='Resize', scale=(160, 160), keep_ratio=True),
        dict(type='RandomFlip', prob=1.0),
        dict(type='Pad', size=(192, 200)),
    ],
}
SPOT = 71.0, 40.0


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    """A wide soft spot on black, at SPOT of 96 x 120 (H x W)."""
    y, x = np.mgrid[:96, :120]
    spot = np.exp(-((x - SPOT[0]) ** 2 + (y - SPOT[1]) ** 2) / (2 * 4**2))
    path = tmp_path_factory.mktemp('image') / 'spot.png'
    cv2.imwrite(str(path), (250 * spot[..., None].repeat(3, 2)).astype('u1'))
    return path


def config(task, pipeline=None):
    cfg = load_config(str(CONFIGS / CONFIGS_OF[task]))
    if pipeline is not None:
        name = dict(det='Det', seg='Seg', cls='')[task]
        cfg.test_dataloader.dataset.pipeline = [
            *pipeline,
            dict(type=f'Pack{name}Inputs'),
        ]
    return cfg


@pytest.fixture(scope='module')
def models():
    return {task: load_model(config(task)) for task in CONFIGS_OF}


def brightest(picture):
    """The centre of the light in the input, in pixels of the picture."""
    light = picture.inputs[0].double().mean(dim=0)
    light = (light - 0.3 * light.max()).clamp(min=0)  # padding is grey
    y, x = torch.meshgrid(*map(torch.arange, light.shape), indexing='ij')
    found = torch.stack([(light * x).sum(), (light * y).sum()]) / light.sum()
    return picture.frame.to_picture(found)


@pytest.mark.parametrize('task', CONFIGS_OF)
@pytest.mark.parametrize('name', PIPELINES)
def test_a_spot_is_found_again(task, name, models, image):
    if name == 'cropped' and task != 'cls':
        pytest.skip('a transform of mmpretrain')
    cfg = config(task, PIPELINES[name])
    picture = load_picture(models[task], image, cfg)
    assert picture.frame.size == picture.image.shape[:2] == (96, 120)
    assert picture.image[40, 71].min() > 240
    found = brightest(picture).numpy()
    assert np.abs(found - SPOT).max() < 0.12, found


def test_pipelines_of_the_configs(models, image):
    # The detector's pads to a multiple of 32.
    for task, shape in (
        ('det', (160, 192)),
        ('seg', (154, 192)),
        ('cls', (64, 64)),
    ):
        picture = load_picture(models[task], image)
        assert picture.inputs.shape[2:] == shape, task
        assert np.abs(brightest(picture).numpy() - SPOT).max() < 0.2


def test_records_of_a_picture_are_in_its_pixels(models, image):
    picture = load_picture(models['det'], image)
    records = record(models['det'], picture, queries_xy=[SPOT])
    assert {stage for stage, _ in records} == {1, 2, 3}
    for one in records.values():
        # The query's map pixel is at most half a stride of 1 / 1.6 away.
        assert (one.queries_xy[0, 0] - torch.tensor(SPOT)).abs().max() <= (
            one.stride / 3.2
        )
        assert one.points_xy.max() < 130 and one.points_xy.min() > -1


def test_colours_are_those_of_the_file(models, tmp_path):
    path = tmp_path / 'red.png'
    cv2.imwrite(str(path), np.full((8, 9, 3), (10, 20, 200), 'u1'))
    picture = load_picture(models['det'], path)
    assert picture.image.shape == (8, 9, 3)
    assert picture.image[0, 0].tolist() == [200, 20, 10]


def test_what_cannot_be_followed_is_refused(models, image, tmp_path):
    crop = dict(type='CenterCrop', crop_size=32)
    odd = config('cls', [LOAD, crop, dict(type='Resize', scale=(64, 64))])
    with pytest.raises(UserError, match='got Resize out of this order'):
        load_picture(models['cls'], image, odd)
    with pytest.raises(UserError, match='There is no image'):
        load_picture(models['cls'], tmp_path / 'none.png')
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(UserError, match='cannot be read as an image'):
        load_picture(models['cls'], tmp_path / 'text.png')
    odd = config('cls', [dict(type='LoadAnnotations')])
    odd.pop('val_dataloader')
    with pytest.raises(UserError, match='starts with LoadImageFromFile'):
        load_picture(models['cls'], image, odd)


def test_models_without_a_dat_are_refused():
    cfg = config('cls')
    cfg.model.backbone = dict(type='ResNet', depth=18)
    with pytest.raises(UserError, match='ImageClassifier has none'):
        load_model(cfg)
