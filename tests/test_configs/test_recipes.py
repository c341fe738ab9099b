# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Schedules, rates and pipelines are the authors'."""

import math

import family
import numpy as np
import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import (
    PARAM_SCHEDULERS,
    TRANSFORMS,
    init_default_scope,
)
from PIL import Image

# Stochastic depth by method and size: 1x and 3x, or the one schedule.
DETECTION = {
    ('retinanet', 't'): (0.0, 0.2),
    ('retinanet', 's'): (0.1, 0.5),
    ('mask_rcnn', 't'): (0.0, 0.3),
    ('mask_rcnn', 's'): (0.1, 0.5),
    ('cascade_mask_rcnn', 't'): (0.0, 0.1),
    ('cascade_mask_rcnn', 's'): (None, 0.5),
    ('cascade_mask_rcnn', 'b'): (None, 0.8),
}
SEGMENTATION = {
    'upernet': dict(t=0.3, s=0.5, b=0.7),
    'semantic_fpn': dict(t=0.4, s=0.4, b=0.7),
}
CLASSIFICATION = dict(
    dat_t=0.2,
    dat_s=0.3,
    dat_b=0.5,
    dat_b_384=0.5,
    dat_pp_t=0.2,
    dat_pp_s=0.4,
    dat_pp_b=0.7,
    dat_pp_b_384=0.6,
)
KINDS = ('dat', 'dat_pp')


def rate(name):
    return family.load(name).model.backbone.drop_path_rate


@pytest.mark.parametrize('kind', KINDS)
def test_stochastic_depth(kind):
    for (method, size), rates in DETECTION.items():
        for schedule, wanted in zip(('', '_3x'), rates):
            if wanted is not None:
                name = f'{method}_{kind}_{size}{schedule}_coco'
                assert rate(name) == wanted, name
    for method, rates in SEGMENTATION.items():
        for size, wanted in rates.items():
            name = f'{method}_{kind}_{size}_ade20k'
            assert rate(name) == wanted, name
    for arch, wanted in CLASSIFICATION.items():
        assert rate(f'classifier_{arch}_in1k') == wanted, arch


def rates(cfg, lr, length, updates):
    """The learning rate of each of the first updates, as mmengine has it.

    Args:
        cfg: A config.
        lr: The rate it starts from.
        length: Updates of an epoch.
        updates: How many to follow.
    """
    parameter = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.SGD([parameter], lr=lr))
    schedulers = [
        PARAM_SCHEDULERS.build(
            dict(scheduler, optimizer=wrapper, epoch_length=length)
        )
        for scheduler in cfg.param_scheduler
    ]
    assert not any(scheduler.by_epoch for scheduler in schedulers)
    found = []
    for _ in range(updates):
        found.append(wrapper.optimizer.param_groups[0]['lr'])
        wrapper.step()
        for scheduler in schedulers:
            scheduler.step()
    return np.array(found)


def names(ending):
    return [name for name in family.PUBLISHED if name.endswith(ending)]


def find(pipeline, kind):
    return next(step for step in pipeline if step.type == kind)


@pytest.mark.parametrize('name', names('_coco'))
def test_detection(name):
    cfg = family.load(name)
    optimizer = cfg.optim_wrapper.optimizer
    lr = 5e-5 if name.startswith('retinanet') else 1e-4
    assert (optimizer.type, optimizer.lr) == ('AdamW', lr)
    assert (optimizer.weight_decay, optimizer.betas) == (0.05, (0.9, 0.999))
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_dataloader.batch_size == 2  # on 8 GPUs
    long = '_3x_' in name
    assert cfg.train_cfg.max_epochs == (36 if long else 12)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (0.001, 500)
    assert steps.milestones == ([27, 33] if long else [8, 11])
    assert (steps.gamma, steps.end) == (0.1, cfg.train_cfg.max_epochs)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    test = cfg.test_dataloader.dataset.pipeline
    resize = find(test, 'Resize')
    assert resize.scale == (1333, 800) and resize.keep_ratio
    with_mask = not name.startswith('retinanet')
    train = cfg.train_dataloader.dataset.pipeline
    for pipeline in (train, test):
        loading = find(pipeline, 'LoadAnnotations')
        assert loading.with_bbox
        assert loading.get('with_mask', False) == with_mask
    metrics = ['bbox', 'segm'] if with_mask else 'bbox'
    assert cfg.test_evaluator.metric == metrics


@pytest.mark.parametrize('kind', ['detection', 'instance'])
def test_detection_augmentation(kind):
    name = dict(detection='retinanet', instance='mask_rcnn')[kind]
    cfg = family.load(f'{name}_dat_t_coco')
    _, _, flip, choice, _ = cfg.train_dataloader.dataset.pipeline
    assert (flip.type, flip.prob) == ('RandomFlip', 0.5)
    plain, cropped = choice.transforms
    final = dict(
        type='RandomChoiceResize',
        scales=[(1333, side) for side in range(480, 801, 32)],
        keep_ratio=True,
    )
    assert plain == [final]
    first, crop, last = cropped
    assert first.scales == [(1333, 400), (1333, 500), (1333, 600)]
    assert crop == dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=(384, 600),
        allow_negative_crop=True,
    )
    assert last == final


@pytest.mark.parametrize('name', names('_ade20k'))
def test_segmentation(name):
    cfg = family.load(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas) == ('AdamW', (0.9, 0.999))
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_dataloader.batch_size == 2  # on 8 GPUs
    if name.startswith('upernet'):
        wanted = (6e-5, 0.01, 160000)
        warm_up, poly = cfg.param_scheduler
        assert (warm_up.start_factor, warm_up.end) == (1e-6, 1500)
        assert (poly.type, poly.power, poly.begin) == ('PolyLR', 1.0, 0)
    else:
        wanted = (1e-4, 1e-4, 80000)
        (poly,) = cfg.param_scheduler
        assert (poly.type, poly.power, poly.begin) == ('PolyLR', 0.9, 0)
    iterations = cfg.train_cfg.max_iters
    assert (optimizer.lr, optimizer.weight_decay, iterations) == wanted
    assert (poly.eta_min, poly.end) == (0.0, iterations)
    train = cfg.train_dataloader.dataset.pipeline
    resize = find(train, 'RandomResize')
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert find(train, 'RandomCrop').crop_size == (512, 512)
    assert cfg.model.data_preprocessor.size == (512, 512)
    test = cfg.test_dataloader.dataset.pipeline
    assert find(test, 'Resize').scale == (2048, 512)
    for pipeline in (train, test):
        assert find(pipeline, 'LoadAnnotations').reduce_zero_label


def test_the_polynomial_of_upernet_runs_below_its_warm_up():
    """As mmcv 1 lays `warmup` over `policy='poly'`."""
    cfg = family.load('upernet_dat_pp_t_ade20k')
    found = rates(cfg, 6e-5, 1, 1600)
    t = np.arange(1600)
    poly = 6e-5 * (1 - t / 160000)
    # mmengine's curves reach their ends one update earlier.
    warm_up = np.minimum(1e-6 + (1 - 1e-6) * t / 1499, 1)
    np.testing.assert_allclose(found, poly * warm_up, rtol=1e-6)


def test_segmentation_at_many_scales():
    """Each picture is fitted into a scaled box, upright and mirrored."""
    cfg = family.load('upernet_dat_pp_t_ade20k')
    _, augmentation = cfg.tta_pipeline
    init_default_scope('mmseg')
    resizes, flips, load, pack = augmentation.transforms
    augmentation.transforms = [resizes, flips, pack]
    views = TRANSFORMS.build(augmentation)(
        dict(
            img=np.zeros((300, 400, 3), np.uint8),
            img_shape=(300, 400),
            ori_shape=(300, 400),
        )
    )
    found = sorted(
        (*sample.metainfo['img_shape'], sample.metainfo['flip'])
        for sample in views['data_samples']
    )
    heights = [256, 384, 512, 640, 768, 896]
    assert found == [
        (height, int(height * 400 / 300 + 0.5), flip)
        for height in heights
        for flip in (False, True)
    ]
    assert load[0].reduce_zero_label


# For 512 pictures: config.py of the authors, and the yaml of the file where
# one is named. dat_base.yaml and dat_base_384.yaml of DAT at commit 7edbb9b,
# dat_base_384.yaml of DAT++.
BASE_LR = dict(
    classifier_dat_b_in1k=4e-4,
    classifier_dat_b_384_in1k=2e-6,
    classifier_dat_pp_b_384_in1k=2e-5,
)
MIN_LR = dict(
    classifier_dat_b_384_in1k=1e-7, classifier_dat_pp_b_384_in1k=2e-7
)
WARMUP_EPOCHS = dict(
    classifier_dat_b_in1k=50,
    classifier_dat_b_384_in1k=0,
    classifier_dat_pp_b_384_in1k=0,
)


@pytest.mark.parametrize('name', names('_in1k'))
@pytest.mark.parametrize('images', [None, 256])
def test_the_rate_of_a_classifier_is_timms(name, images):
    """CosineLRScheduler of timm 0.5.4, update by update, at any batch."""
    cfg, length = family.load(name), 3
    base = BASE_LR.get(name, 5e-4)
    usual = cfg.auto_scale_lr.base_batch_size
    images = images or usual
    peak = base * images / 512
    floor = MIN_LR.get(name, 5e-6) * images / 512
    start = 5e-7 * images / 512
    updates = cfg.train_cfg.max_epochs * length
    warm_up = WARMUP_EPOCHS.get(name, 20) * length
    wanted = [
        start + t * (peak - start) / warm_up
        if t < warm_up
        else floor + (peak - floor) * (1 + math.cos(math.pi * t / updates)) / 2
        for t in range(updates)
    ]
    # What mmengine does for --auto-scale-lr.
    lr = cfg.optim_wrapper.optimizer.lr * images / usual
    found = rates(cfg, lr, length, updates)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize('name', names('_in1k'))
def test_classification(name):
    cfg = family.load(name)
    wrapper = cfg.optim_wrapper
    optimizer = wrapper.optimizer
    large = '_384_' in name
    assert (optimizer.type, optimizer.betas) == ('AdamW', (0.9, 0.999))
    assert optimizer.weight_decay == (1e-8 if large else 0.05)
    base = BASE_LR.get(name, 2e-5 if large else 5e-4)
    images = cfg.auto_scale_lr.base_batch_size
    assert optimizer.lr == pytest.approx(base * images / 512)
    assert images == 8 * cfg.train_dataloader.batch_size
    alone = name == 'classifier_dat_b_in1k'
    assert wrapper.clip_grad.max_norm == (1 if alone else 5)
    assert cfg.train_cfg.max_epochs == (30 if large else 300)
    assert cfg.randomness.diff_rank_seed  # main.py: SEED + rank
    model = cfg.model
    augments = {a.type: a.alpha for a in model.train_cfg.augments}
    assert augments == dict(Mixup=0.8, CutMix=1.0)
    loss = model.head.loss
    assert (loss.type, loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    train = cfg.train_dataloader.dataset.pipeline
    crop = find(train, 'RandomResizedCrop')
    assert crop.scale == (384 if large else 224)
    assert (crop.backend, crop.interpolation) == ('pillow', 'bicubic')
    augment = find(train, 'RandAugment')
    assert augment.policies == 'timm_increasing'
    assert (augment.magnitude_level, augment.magnitude_std) == (9, 0.5)
    erasing = find(train, 'RandomErasing')
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    assert erasing.fill_std is not None  # noise, pixel by pixel
    kinds = [step.type for step in train]
    assert kinds.index('RandAugment') < kinds.index('RandomErasing')


@pytest.mark.parametrize(
    ('name', 'resized', 'side'),
    [
        ('classifier_dat_t_in1k', 256, 224),
        ('classifier_dat_pp_b_in1k', 256, 224),
        ('classifier_dat_pp_b_384_in1k', 384, 384),
        ('classifier_dat_b_384_in1k', 438, 384),
    ],
)
def test_classification_evaluates_as_pillow_resizes(name, resized, side):
    cfg = family.load(name)
    init_default_scope('mmpretrain')
    pixels = np.random.default_rng(0).integers(
        0, 256, (120, 300, 3), dtype=np.uint8
    )
    results = dict(img=pixels)
    load, *steps, pack = cfg.test_dataloader.dataset.pipeline
    assert (load.type, pack.type) == ('LoadImageFromFile', 'PackInputs')
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    margin = (resized - side) // 2
    wanted = np.asarray(
        Image.fromarray(pixels)
        .resize((resized, resized), Image.Resampling.BICUBIC)
        .crop((margin, margin, margin + side, margin + side))
    )
    assert np.array_equal(results['img'], wanted)
