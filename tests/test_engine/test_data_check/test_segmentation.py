# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Label maps that do not fit classes or pictures, told before a training."""

import family
import numpy as np
import pytest
from PIL import Image

from mmdat.engine.data_check import check_data_and_model
from mmdat.engine.data_files import set_data_root
from mmdat.utils.errors import UserError

pytest.importorskip('mmseg')
NAMES = ('road', 'tree', 'sky')


@pytest.fixture
def data(tmp_path):
    """Pictures and maps with values 0 to 2; returns what writes others."""
    draw = np.random.default_rng(0)

    def write(values, split='training', number=0, mode=None, size=(20, 30)):
        labels = draw.choice(np.array(values), size).astype(np.uint8)
        image = Image.fromarray(labels)
        path = tmp_path / 'annotations' / split / f'{number}.png'
        (image if mode is None else image.convert(mode)).save(path)
        return path

    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(3):
            image = Image.new('RGB', (30, 20))
            image.save(tmp_path / 'images' / split / f'{i}.jpg')
            write([0, 1, 2], split, i)
    write.root = tmp_path
    return write


def config(data, reduced=False, classes=3, names=NAMES):
    cfg = family.load('upernet_dat_digits')
    set_data_root(cfg, f'{data.root}/')
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.metainfo = dict(classes=names)
        dataset.reduce_zero_label = reduced
        for transform in dataset.pipeline:
            transform.pop('reduce_zero_label', None)
    cfg.model.decode_head.num_classes = classes
    cfg.model.auxiliary_head.num_classes = classes
    cfg.param_scheduler = []
    return cfg


def check(cfg, splits=('train', 'val')):
    try:
        warnings = check_data_and_model(cfg, splits)
    except UserError as error:
        return str(error).splitlines(), []
    assert not any('could not be compared' in line for line in warnings)
    return [], warnings


def test_correct_data_gives_no_message(data):
    assert check(config(data)) == ([], [])
    data([0, 1, 2, 255])
    assert check(config(data)) == ([], [])


@pytest.mark.parametrize('split', ['training', 'validation'])
@pytest.mark.parametrize('value', [3, 7, 254])
def test_a_label_outside_of_the_classes(value, split, data):
    path = data([0, 1, value], split, 1)
    (said,) = check(config(data))[0]
    assert f'{path} has {value} (1 of 3' in said
    assert ('reduce_zero_label=True, else' in said) == (value == 3)


def test_another_ignored_value(data):
    data([0, 1, 99])
    cfg = config(data)
    cfg.train_dataloader.dataset.ignore_index = 99
    errors, _ = check(cfg)
    assert len(errors) == 3  # two heads, and what pads the maps
    assert 'decode_head.ignore_index is 255 and that of train' in errors[0]
    cfg.model.decode_head.ignore_index = 99
    cfg.model.auxiliary_head.ignore_index = 99
    (said,) = check(cfg)[0]
    assert 'data_preprocessor.seg_pad_val is 255' in said
    cfg.model.data_preprocessor.seg_pad_val = 99
    assert check(cfg) == ([], [])
    data([0, 1, 255])  # which is no label then
    (said,) = check(cfg)[0]
    assert 'or 99 for ignored' in said and 'has 255' in said


def test_a_pipeline_without_the_folder_of_maps(data):
    cfg = config(data)
    del cfg.train_dataloader.dataset.data_prefix['seg_map_path']
    (said,) = check(cfg)[0]
    assert 'seg_map_path, because its pipeline loads' in said


def test_classes_of_no_map(data):
    for number in range(3):
        data([0, 2], number=number)
    errors, (said,) = check(config(data))
    assert not errors and '1 class that no label map has (' in said
    assert NAMES[1] in said and '3 of 3 maps' in said


def test_a_map_that_cannot_be_read(data):
    path = data([0, 1])
    path.write_bytes(path.read_bytes()[:40])
    (said,) = check(config(data))[0]
    assert f'{path} cannot be read' in said


@pytest.mark.parametrize('names', [NAMES[::-1], ('a', 'b', 'c')])
def test_splits_with_other_names(names, data):
    cfg = config(data)
    cfg.val_dataloader.dataset.metainfo = dict(classes=names)
    (said,) = check(cfg)[0]
    assert f'has {names[0]!r} where train_dataloader.dataset has' in said


def test_zero_that_is_ignored_by_mistake(data):
    errors, warnings = check(config(data, reduced=True))
    assert not errors and len(warnings) == 2
    assert "if 0 is the class 'road', set reduce_zero_label" in warnings[0]


def test_zero_that_is_ignored_as_meant(data):
    for split in ('training', 'validation'):
        for i in range(3):
            data([0, 1, 2, 3], split, i)
    assert check(config(data, reduced=True)) == ([], [])
    data([0, 1, 4])
    (said,) = check(config(data, reduced=True))[0]
    assert 'Labels must be 1 to 3' in said and 'has 4' in said


def test_a_pipeline_that_reduces_otherwise(data):
    cfg = config(data)
    cfg.train_dataloader.dataset.pipeline[1].reduce_zero_label = True
    (said,) = check(cfg)[0]
    assert 'has False and its pipeline has True' in said


@pytest.mark.parametrize(('values', 'reduced'), [([255], False), ([0], True)])
def test_maps_without_any_label(values, reduced, data):
    for i in range(3):
        data(values, number=i)
    cfg = config(data, reduced)
    (said,) = check(cfg, ('train',))[0]
    assert 'the 3 maps of' in said and f'only {values[0]}, and' in said


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA'])
def test_maps_of_colours(mode, data):
    path = data([0, 1], mode=mode)
    (said,) = check(config(data))[0]
    assert f'{path} has {len(mode)} channels ({mode})' in said


def test_maps_of_16_bits(data):
    path = data.root / 'annotations/training/1.png'
    Image.fromarray(np.full((20, 30), 300, np.uint16)).save(path)
    assert f'{path} has the label 300' in check(config(data))[0][0]


def test_maps_of_palettes_and_of_two_colours(data):
    path = data.root / 'annotations/training/1.png'
    labels = Image.fromarray(np.full((20, 30), 2, np.uint8), 'L')
    labels.putpalette([i % 256 for i in range(768)])
    labels.save(path)
    assert check(config(data)) == ([], [])
    Image.fromarray(np.ones((20, 30), bool)).save(path)
    assert check(config(data)) == ([], [])


def test_maps_of_another_size(data):
    path = data([0, 1], size=(30, 20))
    (said,) = check(config(data))[0]
    assert f'{path} is 20x30 and its picture 30x20' in said


def test_pictures_that_exif_turns(data):
    exif = Image.Exif()
    exif[0x0112] = 8
    path = data.root / 'images/training/0.jpg'
    Image.new('RGB', (30, 20)).save(path, exif=exif)
    (said,) = check(config(data))[0]
    assert '0.png is 30x20 and its picture 20x30' in said


def test_missing_maps_and_pictures(data):
    (data.root / 'annotations/validation/2.png').unlink()
    (said,) = check(config(data))[0]
    assert 'validation/2.png does not exist (1 of 3 maps' in said
    cfg = config(data)
    cfg.train_dataloader.dataset.img_suffix = '.png'
    (said,) = check(cfg, ('train',))[0]
    assert "img_suffix='.png'; the files there end in .jpg" in said


def test_a_list_of_names(data):
    (data.root / 'train.txt').write_text('0\n2\n')
    (data.root / 'annotations/training/1.png').unlink()
    cfg = config(data)
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    assert check(cfg) == ([], [])
    (data.root / 'train.txt').write_text('')
    assert 'train.txt names none' in check(cfg)[0][0]


@pytest.mark.parametrize('classes', [2, 4, 150])
def test_heads_of_other_classes(classes, data):
    (said,) = {*check(config(data, classes=classes), ('train',))[0]}
    assert f'model.decode_head.num_classes={classes}' in said
    assert f'model.auxiliary_head.num_classes={classes}' in said
    assert 'set them to 3' in said


def test_one_output_tells_two_classes_apart(data):
    for split in ('training', 'validation'):
        for i in range(3):
            data([0, 1], split, i)
    cfg = config(data, classes=2, names=NAMES[:2])
    assert check(cfg) == ([], [])
    cfg = config(data, classes=1, names=NAMES[:2])
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.loss_decode.use_sigmoid = True
    assert check(cfg) == ([], [])


def test_classes_of_a_known_data_set(data):
    cfg = config(data, names=('screw', 'tree', 'sky'))
    cfg.train_dataloader.dataset.type = 'ADE20KDataset'
    (said,) = check(cfg, ('train',))[0]
    assert "also names screw, so set type='BaseSegDataset'" in said
    # Some of its classes: the values of the others are ignored.
    cfg = config(data, names=('building', 'sky'), classes=2)
    cfg.train_dataloader.dataset.type = 'ADE20KDataset'
    assert check(cfg, ('train',)) == ([], [])


@pytest.mark.parametrize(
    ('metainfo', 'words'),
    [
        (dict(CLASSES=NAMES), "has 'CLASSES', so"),
        (dict(classes='road'), "write ('road',)"),
        (dict(classes=NAMES, palette=[[0, 0, 0]]), 'palette has 1'),
    ],
)
def test_classes_that_are_not_read(metainfo, words, data):
    cfg = config(data)
    cfg.train_dataloader.dataset.metainfo = metainfo
    assert words in check(cfg, ('train',))[0][0]


def test_files_that_are_no_pictures(data):
    path = data.root / 'images/training/1.jpg'
    path.write_bytes(b'')
    (said,) = check(config(data))[0]
    assert f'{path} is empty (1 of 3 pictures' in said


def test_metrics_that_ignore_another_label(data):
    cfg = config(data)
    cfg.val_evaluator.ignore_index = 0
    (said,) = check(cfg)[0]
    assert 'val_evaluator.ignore_index is 0 and that of val_data' in said
