# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Faults of COCO files and of configs, each told before anything is built."""

import json

import family
import numpy as np
import pytest
from PIL import Image

from mmdat.engine.data_check import check_data_and_model
from mmdat.utils.errors import UserError

pytest.importorskip('mmdet')
NAMES = ('screw', 'nut', 'washer')
WIDTH, HEIGHT = 64, 48


def content(pictures=4):
    """A file of whole annotations, two objects in each picture."""
    box = [4.0, 5.0, 20.0, 10.0]
    polygon = [4.0, 5.0, 24.0, 5.0, 24.0, 15.0, 4.0, 15.0]
    return dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT)
            for i in range(1, pictures + 1)
        ],
        annotations=[
            dict(
                id=10 * i + k,
                image_id=i,
                category_id=(5, 7, 9)[(i + k) % 3],
                bbox=list(box),
                area=200.0,
                iscrowd=0,
                segmentation=[list(polygon)],
            )
            for i in range(1, pictures + 1)
            for k in range(2)
        ],
        categories=[dict(id=5 + 2 * i, name=n) for i, n in enumerate(NAMES)],
    )


@pytest.fixture
def data(tmp_path):
    """Pictures and files; returns what writes one of the files anew."""
    for split in ('train2017', 'val2017'):
        (tmp_path / split).mkdir()
        for i in range(1, 5):
            image = Image.new('RGB', (WIDTH, HEIGHT))
            image.save(tmp_path / split / f'{i}.jpg')
    (tmp_path / 'annotations').mkdir()

    def write(split, change=None, raw=None):
        path = tmp_path / f'annotations/instances_{split}2017.json'
        whole = content()
        if change is not None:
            change(whole)
        path.write_bytes(raw or json.dumps(whole).encode())
        return path

    write('train')
    write('val')
    write.root = tmp_path
    return write


def config(data, classes=3, names=NAMES):
    from mmdat.engine.data_files import set_data_root

    cfg = family.load('mask_rcnn_dat_digits')
    set_data_root(cfg, f'{data.root}/')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = dict(classes=names)
    cfg.test_dataloader = cfg.val_dataloader
    for head in (cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        head.num_classes = classes
    cfg.param_scheduler = []
    return cfg


def check(cfg, splits=('train', 'val'), **kwargs):
    """Errors, or warnings if there are none."""
    try:
        warnings = check_data_and_model(cfg, splits, **kwargs)
    except UserError as error:
        return str(error).splitlines(), []
    assert not any('could not be compared' in line for line in warnings)
    return [], warnings


def test_whole_data_is_not_spoken_of(data):
    assert check(config(data)) == ([], [])
    assert check(config(data), ('test',)) == ([], [])


def first(**changes):
    """Changes the second annotation; ... takes a part of it away."""

    def change(whole):
        one = whole['annotations'][1]
        one.update(changes)
        for key, value in changes.items():
            if value is ...:
                del one[key]

    return change


def of(key, number=0, **changes):
    def change(whole):
        one = whole[key][number]
        one.update(changes)
        for name, value in changes.items():
            if value is ...:
                del one[name]

    return change


def again(key):
    return lambda whole: whole[key].append(dict(whole[key][-1]))


def drop(key):
    return lambda whole: whole.pop(key)


ERRORS = {
    'no bbox': (first(bbox=...), ('annotation 11 (image 1)', 'no bbox')),
    'box of 3': (first(bbox=[1, 2, 3]), ('11', 'not four numbers')),
    'box of 8': (first(bbox=[10.25] * 8), ('11', 'not four numbers')),
    'box of text': (first(bbox=['1', 2, 3, 4]), ('11', 'not four numbers')),
    'no area': (first(area=...), ('annotation 11 (image 1)', 'no area')),
    'area null': (first(area=None), ('annotation 11', 'no area')),
    'no height': (of('images', height=...), ('height', 'id: 1')),
    'no width': (of('images', width=...), ('width', 'id: 1')),
    'height 0': (of('images', height=0), ('height', 'id: 1')),
    'no file_name': (of('images', file_name=...), ('file_name', 'id: 1')),
    'no image id': (of('images', id=...), ('without an id', "'1.jpg'")),
    'no category name': (of('categories', name=...), ('category', 'name')),
    'no segmentation': (first(segmentation=...), ('11', 'no segmentation')),
    'empty segmentation': (first(segmentation=[]), ('11', 'or an empty one')),
    'flat polygon': (first(segmentation=[4.5] * 8), ('11', 'not a list of')),
    'points': (
        first(segmentation=[[[1, 2], [3, 4], [5, 6]]]),
        ('not a list',),
    ),
    'runs': (
        first(segmentation=dict(counts=[5, 5], size=[HEIGHT, WIDTH])),
        ('11', 'damaged RLE runs'),
    ),
    'runs of text': (
        first(segmentation=dict(counts='zz~', size=[HEIGHT, WIDTH])),
        ('11', 'damaged RLE runs'),
    ),
    'no counts': (
        first(segmentation=dict(size=[HEIGHT, WIDTH])),
        ('11', 'damaged RLE runs'),
    ),
    'size turned': (
        first(
            segmentation=dict(counts=[HEIGHT * WIDTH], size=[WIDTH, HEIGHT])
        ),
        ('11', 'another size'),
    ),
    'image twice': (again('images'), ('one id for two images: 4',)),
    'annotation twice': (again('annotations'), ('two annotations: 41',)),
    'category twice': (
        lambda whole: whole['categories'].append(dict(id=9, name='bolt')),
        ('one id for two categories: 9',),
    ),
    'name twice': (
        lambda whole: whole['categories'].append(dict(id=11, name='nut')),
        ("one name for two categories: 'nut'",),
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
    'no area': (first(bbox=[1, 2, 0, 3]), '1 object without area'),
    'nan': (first(bbox=[1, 2, float('nan'), 3]), '1 object without area'),
    'outside': (first(bbox=[900, 2, 9, 3]), '1 object without area'),
    'area 0': (first(area=0), '1 object without area'),
    'polygon of 4': (first(segmentation=[[1, 2, 3, 4]]), 'fewer than 6'),
    'odd polygon': (first(segmentation=[[1.5] * 7]), 'odd number'),
    'part of 4': (
        first(segmentation=[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]]),
        'among others a polygon',
    ),
    'first of 4': (
        first(segmentation=[[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]),
        'a first polygon of four',
    ),
    'strange category': (first(category_id=99), 'category_id 99'),
    'strange image': (first(image_id=999), 'image_id 999'),
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
        (first(iscrowd=...), 'no iscrowd; pycocotools'),
        (first(segmentation=[[1, 2, 3, 4]]), 'fewer than 6'),
        (first(segmentation=[[1, 2, 3, 4], [1] * 6]), 'a first polygon'),
        (first(area=...), 'no area'),
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
    data('train', first(iscrowd=...))
    assert check(config(data)) == ([], [])


def test_masks_are_not_needed_for_boxes(data):
    change = first(segmentation=...)
    data('train', change)
    data('val', change)
    cfg = config(data)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for transform in loader.dataset.pipeline:
            transform.pop('with_mask', None)
    cfg.val_evaluator.metric = 'bbox'
    assert check(cfg) == ([], [])


def test_a_class_that_no_category_has(data):
    errors, _ = check(config(data, names=('scrw', 'nut', 'washer')))
    assert len(errors) == 2  # of both splits
    assert (
        "no category 'scrw'" in errors[0]
        and "similar name is 'screw'" in errors[0]
    )
    assert 'instances_train2017.json' in errors[0]


def test_classes_of_another_data_set(data):
    cfg = config(data, classes=80)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        del loader.dataset.metainfo
    errors, _ = check(cfg)
    assert "no category 'person', " in errors[0] and '(80 in all)' in errors[0]
    assert 'train_dataloader.dataset.metainfo=dict(classes=(...))' in errors[0]


@pytest.mark.parametrize(
    ('metainfo', 'words'),
    [
        (dict(CLASSES=NAMES), 'a key that is not read'),
        (dict(classes='screw'), "write ('screw',)"),
        (dict(classes=('nut', 'nut', 'screw')), "has 'nut' twice"),
    ],
)
def test_classes_that_are_not_read(metainfo, words, data):
    cfg = config(data)
    cfg.train_dataloader.dataset.metainfo = metainfo
    assert any(words in line for line in check(cfg)[0])


def test_order_of_classes(data):
    _, warnings = check(config(data, names=('nut', 'screw', 'washer')))
    assert len(warnings) == 2 and 'would bear wrong names' in warnings[0]
    data('val', lambda whole: whole['categories'].reverse())
    errors, _ = check(config(data))
    assert 'which must be the same in all' in errors[0]


@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_missing_pictures(split, data):
    (data.root / split / '3.jpg').unlink()
    (said,) = check(config(data))[0]
    assert f'{split}/3.jpg, and 1 of 4 are not there' in said


def turned(data, orientation, size=(WIDTH, HEIGHT)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = data.root / 'train2017/2.jpg'
    Image.new('RGB', size).save(path, exif=exif)
    return path


def test_pictures_that_exif_turns(data):
    path = turned(data, 6)
    (said,) = check(config(data))[0]
    assert f'{path}, is 64x48 in the annotations and 48x64 as' in said
    assert 'color_ignore_orientation' in said
    cfg = config(data)
    cfg.train_dataloader.dataset.pipeline[
        0
    ].color_type = 'color_ignore_orientation'
    assert check(cfg) == ([], [])
    turned(data, 6, (HEIGHT, WIDTH))  # the boxes are for the turned one
    assert check(config(data)) == ([], [])
    turned(data, 3)
    errors, (said,) = check(config(data))
    assert not errors and 'turned or mirrored' in said


def test_pictures_of_another_size(data):
    Image.new('RGB', (WIDTH, HEIGHT + 2)).save(data.root / 'val2017/1.jpg')
    (said,) = check(config(data))[0]
    assert '64x48 in the annotations and 64x50 as loaded' in said


def test_evaluators_read_files_of_their_own(data):
    cfg = config(data)
    other = data.root / 'annotations/other.json'
    whole = content(pictures=3)
    other.write_text(json.dumps(whole))
    cfg.val_evaluator.ann_file = str(other)
    (said,) = check(cfg)[0]
    assert 'lacks 1 of' in said and 'such as id 4' in said
    cfg.val_evaluator = dict(type='Evaluator', metrics=[cfg.val_evaluator])
    assert check(cfg)[0] == [said]
    cfg.val_evaluator = cfg.val_evaluator.metrics
    assert check(cfg)[0] == [said]
    other.write_text('[]')
    assert 'holds a list' in check(cfg)[0][0]


def test_filters_that_leave_nothing(data):
    cfg = config(data)
    cfg.train_dataloader.dataset.filter_cfg = dict(min_size=50)
    (said,) = check(cfg)[0]
    assert 'keeps none of the 4 images' in said and 'min_size' in said


@pytest.mark.parametrize('wrap', ['repeat', 'balanced', 'concat', 'mixed'])
def test_wrapped_data_sets(wrap, data):
    data('train', first(bbox=...))
    cfg = config(data)
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = {
        'repeat': dict(type='RepeatDataset', times=3, dataset=inner),
        'balanced': dict(
            type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner
        ),
        'concat': dict(type='ConcatDataset', datasets=[inner, inner]),
        'mixed': dict(type='MultiImageMixDataset', dataset=inner, pipeline=[]),
    }[wrap]
    (said, *_) = check(cfg)[0]
    assert said.startswith('train_dataloader.dataset.dataset')
    assert 'no bbox' in said


def test_data_sets_of_ones_own(data):
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    @DATASETS.register_module(force=True)
    class Bolts(CocoDataset):
        METAINFO = dict(classes=NAMES)

    @DATASETS.register_module(force=True)
    class Other(CocoDataset):
        METAINFO = dict(classes=NAMES)

        def parse_data_info(self, raw_data_info):
            raw_data_info['raw_ann_info'] = []
            return super().parse_data_info(raw_data_info)

    data('train', first(bbox=...))
    cfg = config(data)
    del cfg.train_dataloader.dataset['metainfo']
    for kind, told in ((Bolts, True), ('Bolts', True), ('Other', False)):
        cfg.train_dataloader.dataset.type = kind
        assert bool(check(cfg)[0]) == told


def test_what_is_not_known_is_left_alone(data):
    data('train', raw=b'[]')
    cfg = config(data)
    for kind in ('NobodyKnows', 'mmnowhere.Data', None, 'XMLDataset'):
        cfg.train_dataloader.dataset.type = kind
        assert not check(cfg, ('train',))[0]
    cfg.train_dataloader.dataset.type = 'CocoDataset'
    cfg.train_dataloader.dataset.backend_args = dict(backend='petrel')
    assert not check(cfg, ('train',))[0]
    cfg.train_dataloader = dict(dataset=object())
    cfg.val_dataloader = None
    assert not check(cfg)[0]


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
