# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Damaged pictures and labels: named in an error, or left out."""

import json
import shutil
from types import SimpleNamespace

import family
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope

from mmdat.datasets.digits import DigitsOptions, make_digits
from mmdat.engine.data_files import check_data, set_data_root
from mmdat.engine.hooks import NameDataHook
from mmdat.utils.errors import UserError

CONFIGS = dict(
    coco='mask_rcnn_dat_digits',
    ade='upernet_dat_digits',
    imagenet='classifier_dat_digits',
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    options = DigitsOptions(train=2, val=1, size=96, crops=1, crop_size=48)
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', options)


@pytest.fixture
def digits(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'digits')


def config(digits, kind):
    cfg = family.load(CONFIGS[kind])
    set_data_root(cfg, f'{digits / kind}/')
    init_default_scope(cfg.default_scope)
    return cfg


def read(digits, kind):
    """All samples, as a training would read them."""
    cfg = config(digits, kind)
    check_data(cfg, ('train',))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    NameDataHook().before_run(
        SimpleNamespace(_train_loop=loop, _val_loop=None, _test_loop=None)
    )
    return [dataset[i] for i in range(len(dataset))]


DAMAGE = {
    'truncated': lambda content: content[: len(content) // 2],
    'empty': lambda content: b'',
    'zeros': lambda content: bytes(len(content)),
}


@pytest.mark.parametrize('damage', DAMAGE)
@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('coco', 'train2017/000000.jpg'),
        ('ade', 'images/training/000000.jpg'),
        ('ade', 'annotations/training/000000.png'),
        ('imagenet', 'train/0/0000.jpg'),
    ],
)
def test_a_damaged_picture_is_named(kind, name, damage, digits):
    path = digits / kind / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(RuntimeError, match=f'{path}.* cannot be used: '):
        read(digits, kind)


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('coco', 'train2017/000000.jpg'),
        ('ade', 'annotations/training/000000.png'),
    ],
)
def test_a_missing_picture_is_named(kind, name, digits):
    (digits / kind / name).unlink()
    with pytest.raises(RuntimeError, match='FileNotFound.*' + name):
        read(digits, kind)


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_annotations_are_named_before_anything_is_read(damage, digits):
    path = digits / 'coco/annotations/instances_train2017.json'
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError, match=f'whole JSON file; {path} starts'):
        check_data(config(digits, 'coco'), ('train',))


def first_changed(digits, **changes):
    """Reads COCO with another first annotation; None takes a part away."""
    path = digits / 'coco/annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    first = content['annotations'][0]
    first.update(changes)
    for key, value in changes.items():
        if value is None:
            del first[key]
    path.write_text(json.dumps(content))
    return read(digits, 'coco')


@pytest.mark.parametrize(
    'changes',
    [
        dict(bbox=[1, 2, -5, 3]),
        dict(bbox=[1e9, 1e9, 5, 5]),
        dict(bbox=[1, 2, float('nan'), 5]),
        dict(bbox=[float('nan'), 2, 5, 5]),
        dict(area=0),
        dict(category_id=99),
        dict(image_id=9999),
    ],
    ids=str,
)
def test_impossible_objects_are_left_out(changes, digits):
    """As mmdet does it, silently."""
    samples = first_changed(digits, **changes)
    assert len(samples) == 2
    for sample in samples:
        boxes = sample['data_samples'].gt_instances.bboxes.tensor
        assert np.isfinite(boxes.numpy()).all()


def test_an_object_without_a_mask_is_named(digits):
    with pytest.raises(RuntimeError, match=r"0\d+.jpg cannot .* 'mask'"):
        first_changed(digits, segmentation=None)
