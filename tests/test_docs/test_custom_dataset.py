# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The configs of the page on custom data build, read data and train."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmdat.datasets.digits import DigitsOptions, make_digits
from mmdat.engine.configuration import load_config

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'custom_dataset.md').read_text()
CLASSES = ('screw', 'nut', 'washer')
IDS = (7, 8, 12)
# Small pictures, and the rest of the page's config as it is.
QUICK = """
_base_ = 'mine.py'
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(96, 96)),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=pipeline, filter_cfg=dict(_delete_=True)))
val_dataloader = dict(num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=[*pipeline[:1], pipeline[2], dict(
        type='PackDetInputs', meta_keys=(
            'img_id', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
default_hooks = dict(checkpoint=dict(save_optimizer=False),
    logger=dict(interval=1))
"""


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path):
    digits = make_digits(
        tmp_path / 'digits', DigitsOptions(train=4, val=2, size=96, crops=2)
    )
    mine = tmp_path / 'data' / 'mine'
    (mine / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (digits / 'coco' / f'{split}2017').rename(mine / split)
        source = digits / f'coco/annotations/instances_{split}2017.json'
        content = json.loads(source.read_text())
        content['categories'] = [
            dict(id=i, name=name) for i, name in zip(IDS, CLASSES)
        ]
        for annotation in content['annotations']:
            annotation['category_id'] = IDS[annotation['category_id'] % 3]
        target = mine / 'annotations' / f'{split}.json'
        target.write_text(json.dumps(content))
    configs = tmp_path / 'configs'
    configs.mkdir()
    for path in (ROOT / 'configs').iterdir():
        (configs / path.name).symlink_to(path)
    snippet = re.search(r'```python\n(.*?)```', PAGE, re.S).group(1)
    (configs / 'mine.py').write_text(snippet)
    (configs / 'quick.py').write_text(QUICK)

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    train = run(ROOT / 'tools/train.py', 'configs/quick.py')
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', train)
    test = run(
        ROOT / 'tools/test.py',
        'configs/quick.py',
        'work_dirs/quick/epoch_1.pth',
        '--cfg-options',
        'test_evaluator.classwise=True',
    )
    assert all(f'| {name} ' in test for name in CLASSES)


def page_config(number, package, tmp_path):
    """A config of the page, read beside ours."""
    pytest.importorskip(package)
    configs = tmp_path / 'configs'
    configs.mkdir()
    for path in (ROOT / 'configs').iterdir():
        (configs / path.name).symlink_to(path)
    snippets = re.findall(r'```python\n(.*?)```', PAGE, re.S)
    (configs / 'mine.py').write_text(snippets[number])
    return load_config(str(configs / 'mine.py'))


def build_dataset(cfg, data_root):
    """The train data, from another folder, and the model's head."""
    init_default_scope(cfg.default_scope)
    options = {**cfg.train_dataloader.dataset, 'data_root': str(data_root)}
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    return DATASETS.build(options), model


def test_the_segmentation_config_reads_such_data(tmp_path):
    cfg = page_config(1, 'mmseg', tmp_path)
    for split in ('train', 'val'):
        for kind, suffix in (('images', 'jpg'), ('labels', 'png')):
            folder = tmp_path / 'mine' / kind / split
            folder.mkdir(parents=True)
            image = np.full((80, 90, 3), 2, np.uint8)
            image[40:] = 0
            if kind == 'labels':
                image = image[..., 0]
            cv2.imwrite(str(folder / f'a.{suffix}'), image)
    dataset, model = build_dataset(cfg, tmp_path / 'mine')
    labels = dataset[0]['data_samples'].gt_sem_seg.data
    assert set(labels.unique().tolist()) <= {0, 2, 255}  # nothing subtracted
    assert len(dataset) == 1 and 2 in labels
    assert model.decode_head.num_classes == 3
    assert len(dataset.metainfo['classes']) == 3


def test_the_classification_config_reads_such_data(tmp_path):
    cfg = page_config(2, 'mmpretrain', tmp_path)
    for name in CLASSES:
        folder = tmp_path / 'mine' / 'train' / name
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / 'a.jpg'), np.zeros((60, 70, 3), np.uint8))
    dataset, model = build_dataset(cfg, tmp_path / 'mine')
    assert len(dataset) == 3
    sample = dataset[2]
    label = sample['data_samples'].gt_label.item()
    assert dataset.CLASSES[label] == 'washer'
    assert sample['inputs'].shape == (3, 224, 224)
    assert model.head.fc.out_features == 3
