# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Faults of COCO files are reported before anything is built."""

import json

import numpy as np
import pytest
import small_coco
from small_coco import (
    HEIGHT,
    WIDTH,
    annotation,
    check,
    config,
    content,
    edited,
)

pytest.importorskip('mmdet')


@pytest.fixture
def data(tmp_path):
    return small_coco.write_files(tmp_path)


def again(key):
    return lambda whole: whole[key].append(dict(whole[key][-1]))


def drop(key):
    return lambda whole: whole.pop(key)


def every(change):
    """Applies a function to every annotation."""
    return lambda whole: [change(one) for one in whole['annotations']]


def to_corners(one):
    x, y, width, height = 30.0, 20.0, 30.0, 20.0
    one['bbox'] = [x, y, x + width, y + height]


def scale_polygon(one, x, y, shift=0):
    (polygon,) = one['segmentation']
    polygon[::2] = [n * x + shift for n in polygon[::2]]
    polygon[1::2] = [n * y for n in polygon[1::2]]


def normalise(one):
    x, y, width, height = one['bbox']
    one['bbox'] = [x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]


ERRORS = {
    'no bbox': (annotation(bbox=...), ('annotation 11 (image 1)', 'no bbox')),
    'box of 3': (annotation(bbox=[1, 2, 3]), ('11', 'not four numbers')),
    'box of 8': (annotation(bbox=[10.25] * 8), ('11', 'not four numbers')),
    'box of text': (
        annotation(bbox=['1', 2, 3, 4]),
        ('11', 'not four numbers'),
    ),
    'no area': (annotation(area=...), ('annotation 11 (image 1)', 'no area')),
    'area null': (annotation(area=None), ('annotation 11', 'no area')),
    'no height': (edited('images', height=...), ('height', 'id 1')),
    'no width': (edited('images', width=...), ('width', 'id 1')),
    'height 0': (edited('images', height=0), ('height', 'id 1')),
    'no file_name': (edited('images', file_name=...), ('file_name', 'id 1')),
    'no image id': (edited('images', id=...), ('without an id', "'1.jpg'")),
    'no category name': (edited('categories', name=...), ('category', 'name')),
    'no segmentation': (
        annotation(segmentation=...),
        ('11', 'no segmentation'),
    ),
    'empty segmentation': (
        annotation(segmentation=[]),
        ('11', 'or an empty one'),
    ),
    'flat polygon': (
        annotation(segmentation=[4.5] * 8),
        ('11', 'not a list of'),
    ),
    'points': (
        annotation(segmentation=[[[1, 2], [3, 4], [5, 6]]]),
        ('not a list',),
    ),
    'runs': (
        annotation(segmentation=dict(counts=[5, 5], size=[HEIGHT, WIDTH])),
        ('11', 'damaged RLE runs'),
    ),
    'runs of text': (
        annotation(segmentation=dict(counts='zz~', size=[HEIGHT, WIDTH])),
        ('11', 'damaged RLE runs'),
    ),
    'no counts': (
        annotation(segmentation=dict(size=[HEIGHT, WIDTH])),
        ('11', 'damaged RLE runs'),
    ),
    'size turned': (
        annotation(
            segmentation=dict(counts=[HEIGHT * WIDTH], size=[WIDTH, HEIGHT])
        ),
        ('11', 'another size'),
    ),
    'image twice': (again('images'), ('two images with the id 4',)),
    'annotation twice': (
        again('annotations'),
        ('two annotations with the id 41',),
    ),
    'category twice': (
        lambda whole: whole['categories'].append(dict(id=9, name='bolt')),
        ('two categories with the id 9',),
    ),
    'name twice': (
        lambda whole: whole['categories'].append(dict(id=11, name='nut')),
        ("two categories with the name 'nut'",),
    ),
    'no categories': (drop('categories'), ("has no 'categories'",)),
    'no images': (drop('images'), ("has no 'images'",)),
    'images empty': (lambda w: w['images'].clear(), ('lists none',)),
    'no objects': (lambda w: w['annotations'].clear(), ('keeps none',)),
    'other image ids': (
        lambda w: [
            a.update(image_id=str(a['image_id'])) for a in w['annotations']
        ],
        ('keeps none of the 4 images', 'image_id'),
    ),
    'area text': (annotation(area='200'), ('11', 'an area that is not a')),
    'iscrowd text': (annotation(iscrowd='no'), ('11', 'neither 0 nor 1')),
    'crowds only': (
        every(lambda one: one.update(iscrowd=1)),
        ('Some objects must count', 'nothing to learn'),
    ),
    'all outside': (
        every(lambda one: one.update(bbox=[900, 2, 9, 3])),
        ('Some objects must count', 'nothing to learn'),
    ),
    'parts of the picture': (every(normalise), ('Some objects must count',)),
    'corners': (
        every(to_corners),
        ('not two corners', '8 of the 8 objects', '[30.0, 20.0, 60.0, 40.0]'),
    ),
    'polygons in parts of the picture': (
        every(lambda one: scale_polygon(one, 1 / WIDTH, 1 / HEIGHT)),
        ('Polygons must be in pixels', '8 of the first 8', 'annotation 10'),
    ),
    'polygons elsewhere': (
        every(lambda one: scale_polygon(one, 1, 1, 100)),
        ('where the box of their object is', 'begins with [104.0, 5.0'),
    ),
    'no list of annotations': (
        drop('annotations'),
        ('a list "annotations"',),
    ),
    'annotations by id': (
        lambda w: w.update(
            annotations={one['id']: one for one in w['annotations']}
        ),
        ('a list "annotations"',),
    ),
    'a list': (
        lambda w: w['annotations'].append([1]),
        ('not a JSON object: [1]',),
    ),
}


@pytest.mark.parametrize('kind', ERRORS)
def test_faults_of_a_file_are_told(kind, data):
    change, words = ERRORS[kind]
    path = data('train', change)
    errors, _ = check(config(data))
    (said,) = [line for line in errors if str(path) in line][:1]
    for word in words:
        assert word in said, said


RAW = {
    'empty': (b'\n', 'is empty'),
    'list': (b'[]', 'holds a list'),
    'object': (b'{}', "has no 'images'"),
    'page': (b'<html>', "starts with '<'"),
    'zeros': (bytes(500), 'starts with'),
    'mark': (b'\xef\xbb\xbf{}', 'byte-order mark; save it as UTF-8'),
    'utf16': ('{}'.encode('utf-16'), 'UTF-16'),
    'latin': (b'{"images": ["\xe9"]}', 'not written in UTF-8'),
    'gzip': (b'\x1f\x8b123', 'is compressed'),
}


@pytest.mark.parametrize('kind', RAW)
def test_files_that_are_no_annotations(kind, data):
    raw, words = RAW[kind]
    if kind == 'mark':
        raw = b'\xef\xbb\xbf' + json.dumps(content()).encode()
    path = data('train', raw=raw)
    errors, _ = check(config(data))
    assert len(errors) == 1 and f'; {path} ' in errors[0]
    assert words.partition(';')[0] in errors[0]


def test_a_file_damaged_in_its_middle(data):
    raw = json.dumps(content()).encode()
    at = raw.index(b'"id": 31')
    path = data('train', raw=raw[:at] + b'\x00\x00' + raw[at + 2 :])
    (said,) = check(config(data))[0]
    assert str(path) in said and "in entry 5 of 'annotations'" in said
    data('train', raw=raw[:at])
    (said,) = check(config(data))[0]
    assert 'is truncated' in said


WARNINGS = {
    'no area': (annotation(bbox=[1, 2, 0, 3]), '1 object without area'),
    'nan': (annotation(bbox=[1, 2, float('nan'), 3]), '1 object without area'),
    'outside': (annotation(bbox=[900, 2, 9, 3]), '1 object without area'),
    'area 0': (annotation(area=0), '1 object without area'),
    'beyond': (annotation(bbox=[50, 2, 20, 9]), '1 of the 8 objects'),
    'polygon of 4': (annotation(segmentation=[[1, 2, 3, 4]]), 'fewer than 6'),
    'odd polygon': (annotation(segmentation=[[1.5] * 7]), 'odd number'),
    'part of 4': (
        annotation(segmentation=[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]]),
        'several polygons, one with',
    ),
    'first of 4': (
        annotation(segmentation=[[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]),
        'the first with four numbers',
    ),
    'strange category': (annotation(category_id=99), 'category_id 99'),
    'strange image': (annotation(image_id=999), 'image_id 999'),
    'more categories': (
        lambda w: w['categories'].append(dict(id=1, name='bolt')),
        '1 category that no class',
    ),
}


@pytest.mark.parametrize('kind', WARNINGS)
def test_what_trains_on_is_said(kind, data):
    change, words = WARNINGS[kind]
    path = data('train', change)
    errors, warnings = check(config(data))
    assert not errors
    assert any(words in line and str(path) in line for line in warnings)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (annotation(iscrowd=...), 'no iscrowd; pycocotools'),
        (annotation(segmentation=[[1, 2, 3, 4]]), 'fewer than 6'),
        (
            annotation(segmentation=[[1, 2, 3, 4], [1] * 6]),
            'the first with four numbers',
        ),
        (annotation(area=...), 'no area'),
    ],
)
def test_what_ends_an_evaluation_is_told(change, words, data):
    path = data('val', change)
    errors, _ = check(config(data))
    assert any(
        line.startswith('val_evaluator: annotation 11')
        and words in line
        and str(path) in line
        for line in errors
    )


def test_iscrowd_is_not_needed_to_train(data):
    data('train', annotation(iscrowd=...))
    assert check(config(data)) == ([], [])


def test_masks_are_not_needed_for_boxes(data):
    change = annotation(segmentation=...)
    data('train', change)
    data('val', change)
    cfg = config(data)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for transform in loader.dataset.pipeline:
            transform.pop('with_mask', None)
    cfg.val_evaluator.metric = 'bbox'
    errors, (said,) = check(cfg)
    assert not errors and 'no best checkpoint is kept' in said
    cfg.default_hooks.checkpoint.save_best = 'coco/bbox_mAP'
    assert check(cfg) == ([], [])


def test_compressed_masks_add_up(data):
    from pycocotools.mask import encode

    draw = np.random.default_rng(0)
    masks = [
        draw.random((HEIGHT, WIDTH)) < share for share in (0, 0.01, 0.5, 1)
    ]

    def change(whole):
        for one, mask in zip(whole['annotations'], masks):
            runs = encode(np.asfortranarray(mask, np.uint8))
            runs['counts'] = runs['counts'].decode()
            one['segmentation'] = runs

    data('train', change)
    assert check(config(data)) == ([], [])


def test_a_file_is_read_once(data, monkeypatch):
    from mmdat.engine.data_check import coco_file

    read = []
    init = coco_file.CocoFile.__init__

    def counting(self, path):
        read.append(path.name)
        init(self, path)

    monkeypatch.setattr(coco_file.CocoFile, '__init__', counting)
    check(config(data), ('train', 'val', 'test'))
    assert sorted(read) == [
        'instances_train2017.json',
        'instances_val2017.json',
    ]
