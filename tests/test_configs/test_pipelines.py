# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What reaches the models in a test is what the authors' models were given.

Each picture is prepared once by a config's test pipeline and once by hand,
with Pillow, as the authors' data loaders did.
"""

from pathlib import Path

import family
import numpy as np
import pytest
import small_data
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import (
    DATASETS,
    MODELS,
    TRANSFORMS,
    init_default_scope,
)
from PIL import Image

from mmdat.engine.data_files import set_data_root

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
ORIENTATION = 0x0112  # of EXIF: which side of a photograph is up


def picture(height: int, width: int, grain: int = 1) -> Image.Image:
    """Noise of three different channels."""
    random = np.random.default_rng(height + width)
    noise = random.integers(0, 256, (height // grain, width // grain, 3))
    small = Image.fromarray(noise.astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR)


def normalise(image: Image.Image) -> torch.Tensor:
    """(3, H, W), red first."""
    pixels = (np.asarray(image) / 255 - MEAN) / STD
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float()


def first_input(name: str, root: Path):
    """What the model of a config gets of the first test picture."""
    cfg = family.load(name)
    set_data_root(cfg, str(root))
    init_default_scope(cfg.default_scope)
    # ImageClassifier completes the settings that stand beside it.
    preprocessor = MODELS.build(
        cfg.model.get('data_preprocessor')
        or dict(cfg.data_preprocessor, type='ClsDataPreprocessor')
    )
    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    batch = preprocessor(pseudo_collate([sample]), training=False)
    return batch['inputs'][0], batch['data_samples'][0]


@pytest.mark.parametrize(
    ('name', 'size', 'cut'),
    [
        ('classifier_dat_t_in1k', 256, 224),
        ('classifier_dat_pp_b_in1k', 256, 224),
        ('classifier_dat_b_384_in1k', 438, 384),
        ('classifier_dat_pp_b_384_in1k', 384, 384),
    ],
)
@pytest.mark.parametrize('shape', [(500, 375), (90, 333), (300, 300)])
def test_classification(tmp_path, name, size, cut, shape):
    image = picture(*shape)
    small_data.imagenet(tmp_path, [(image, 7)])
    found, sample = first_input(name, tmp_path)
    margin = (size - cut) // 2
    wanted = image.resize((size, size), Image.Resampling.BICUBIC).crop(
        (margin, margin, margin + cut, margin + cut)
    )
    torch.testing.assert_close(found, normalise(wanted), rtol=0, atol=1e-5)
    assert sample.gt_label.tolist() == [7]


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize(
    'name', ['classifier_dat_t_in1k', 'classifier_dat_pp_b_384_in1k']
)
def test_classification_reads_as_pillow_does(tmp_path, name, split):
    """torchvision's ImageFolder: Image.open(...).convert('RGB').

    OpenCV, mmpretrain's default, turns the photograph, so that the model is
    trained on it lying, and on another part of it.
    """
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / 'x.jpg'
    picture(120, 300).save(path, exif=exif, quality=60)
    cfg = family.load(name)
    init_default_scope('mmpretrain')
    load = cfg[f'{split}_dataloader'].dataset.pipeline[0]
    found = TRANSFORMS.build(load)(dict(img_path=str(path)))['img']
    wanted = np.asarray(Image.open(path).convert('RGB'))
    assert np.array_equal(found[..., ::-1], wanted)
    turned = TRANSFORMS.build(dict(type='LoadImageFromFile'))(
        dict(img_path=str(path))
    )['img']
    assert turned.shape == (300, 120, 3) and found.shape == (120, 300, 3)


def test_classification_does_not_turn_photographs(tmp_path):
    """PIL, by which the authors read, leaves that to the caller."""
    image = picture(200, 300, grain=50)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    small_data.imagenet(tmp_path, [(image, 7)], '.jpg', exif=exif, quality=95)
    found, _ = first_input('classifier_dat_t_in1k', tmp_path)
    wanted = image.resize((256, 256), Image.Resampling.BICUBIC)
    wanted = normalise(wanted.crop((16, 16, 240, 240)))
    assert (found - wanted).abs().mean() < 0.1
    assert (found.rot90(-1, (1, 2)) - wanted).abs().mean() > 0.5


@pytest.mark.parametrize(
    'name',
    [
        'retinanet_dat_pp_t_coco',
        'mask_rcnn_dat_pp_s_3x_coco',
        'cascade_mask_rcnn_dat_pp_b_3x_coco',
    ],
)
@pytest.mark.parametrize(
    ('shape', 'resized', 'padded'),
    [
        ((300, 400), (800, 1067), (800, 1088)),  # the short side is 800
        ((200, 640), (417, 1333), (448, 1344)),  # the long one is 1333
    ],
)
def test_detection(tmp_path, name, shape, resized, padded):
    image = picture(*shape, grain=4)
    small_data.coco(tmp_path, [(image, 18, (10, 20, 30, 40))])
    found, sample = first_input(name, tmp_path)
    wanted = image.resize(resized[::-1], Image.Resampling.BILINEAR)
    assert found.shape == (3, *padded)
    height, width = resized
    # OpenCV rounds its weights, so a level of 256 may be missed by one.
    difference = (found[:, :height, :width] - normalise(wanted)).abs()
    assert difference.max() < 1.01 / 255 / STD.min()
    assert difference.mean() < 0.3 / 255 / STD.min()
    # Padded to the right and below, after normalising.
    assert not found[:, height:].any() and not found[:, :, width:].any()
    # The truth stays as it is; boxes are brought back to it.
    assert sample.ori_shape == shape and sample.img_shape == resized
    assert sample.scale_factor == pytest.approx(
        (resized[1] / shape[1], resized[0] / shape[0])
    )
    assert sample.img_id == 1
    # The dog, 18 in COCO's numbers with their gaps, is class 16.
    assert sample.gt_instances.labels.tolist() == [16]


@pytest.mark.parametrize(
    'name', ['upernet_dat_pp_t_ade20k', 'semantic_fpn_dat_pp_b_ade20k']
)
@pytest.mark.parametrize(
    ('shape', 'resized'),
    [((300, 400), (512, 683)), ((100, 500), (410, 2048))],
)
def test_segmentation(tmp_path, name, shape, resized):
    image = picture(*shape, grain=4)
    # 0 stands for no class and is ignored, 1 to 150 are the classes.
    labels = np.arange(shape[0] * shape[1]).reshape(shape) % 151
    small_data.ade20k(tmp_path, [(image, labels)])
    image = Image.open(next(tmp_path.glob('images/validation/*.jpg')))
    found, sample = first_input(name, tmp_path)
    wanted = image.resize(resized[::-1], Image.Resampling.BILINEAR)
    assert found.shape == (3, *resized)  # no padding
    difference = (found - normalise(wanted)).abs()
    assert difference.max() < 2.01 / 255 / STD.min()
    assert difference.mean() < 0.3 / 255 / STD.min()
    truth = sample.gt_sem_seg.data[0].numpy()
    assert truth.shape == shape
    assert (truth == np.where(labels == 0, 255, labels - 1)).all()
