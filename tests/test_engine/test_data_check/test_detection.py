# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Classes, metrics and data sets of detection configs are checked."""

import json

import pytest
import small_coco
from small_coco import NAMES, annotation, check, config, content

pytest.importorskip('mmdet')


@pytest.fixture
def data(tmp_path):
    return small_coco.write_files(tmp_path)


def test_correct_data_gives_no_message(data):
    assert check(config(data)) == ([], [])
    assert check(config(data), ('test',)) == ([], [])


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
        (dict(CLASSES=NAMES), "has 'CLASSES', so"),
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
    assert len(warnings) == 2 and 'would show the wrong names' in warnings[0]
    data('val', lambda whole: whole['categories'].reverse())
    errors, _ = check(config(data))
    assert 'so all files need the same order' in errors[0]


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
    data('train', annotation(bbox=...))
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

    data('train', annotation(bbox=...))
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
    cfg.train_dataloader = dict(dataset=object(), sampler=None)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    assert not check(cfg)[0]


def test_splits_with_other_classes(data):
    """Where mmdet takes any order, since it numbers them by the file."""
    cfg = config(data, 2, NAMES[:2])
    cfg.val_dataloader.dataset.metainfo = dict(classes=NAMES[1::-1])
    errors, _ = check(cfg)
    assert not errors
    cfg.val_dataloader.dataset.metainfo = dict(classes=NAMES[1:])
    (said,) = check(cfg)[0]
    assert 'All splits need the same classes' in said


def test_a_class_without_objects(data):
    path = data(
        'train',
        lambda whole: whole['annotations'].__setitem__(
            slice(None),
            [a for a in whole['annotations'] if a['category_id'] != 7],
        ),
    )
    errors, (said,) = check(config(data))
    assert not errors
    assert f'{path} has no object of 1 class' in said and NAMES[1] in said


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(filter_cfg=dict(min_siz=3)), 'filter_cfg may hold filter_empty'),
        (dict(indices=99), 'got 99, and'),
        (dict(indices=[0, 4]), 'got 4, and'),
        (dict(classes=NAMES, metainfo=None), 'the setting classes of MMCV'),
        (
            dict(metainfo=dict(classes=NAMES, palette=[(1, 2, 3)])),
            'has 1 colour, and its classes are 3',
        ),
    ],
)
def test_settings_that_are_not_read_or_fail_late(changes, words, data):
    cfg = config(data)
    cfg.train_dataloader.dataset.update(changes)
    assert any(words in line for line in check(cfg)[0]), check(cfg)[0]


def test_indices_that_are_there(data):
    cfg = config(data)
    for indices in (4, -4, 2, [0, 3, -4]):
        cfg.train_dataloader.dataset.indices = indices
        assert not check(cfg)[0]


def test_validation_on_what_was_trained_on(data):
    cfg = config(data)
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    val.data_prefix = train.data_prefix
    errors, (said,) = check(cfg)
    assert not errors
    assert 'val_dataloader.dataset has 4 pictures that train_data' in said
    val.ann_file = cfg.val_evaluator.ann_file = train.ann_file
    cfg.val_evaluator.ann_file = str(data('train'))
    errors, (said,) = check(cfg)
    assert not errors and 'reads the same pictures as train_datal' in said
    train.indices, val.indices = [0, 1], [2, 3]
    assert check(cfg) == ([], [])


def test_pictures_without_labels(data):
    cfg = config(data)
    train = cfg.train_dataloader.dataset
    data('train', lambda whole: whole.pop('annotations'))
    assert 'a list "annotations"' in check(cfg)[0][0]
    train.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadEmptyAnnotations'),
        dict(type='PackDetInputs'),
    ]
    assert check(cfg)[0] == []
