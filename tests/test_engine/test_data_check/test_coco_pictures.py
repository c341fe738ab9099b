# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Pictures that are missing, or have another size than in a COCO file."""

import pytest
import small_coco
from PIL import Image
from small_coco import HEIGHT, WIDTH, check, config

pytest.importorskip('mmdet')


@pytest.fixture
def data(tmp_path):
    return small_coco.write_files(tmp_path)


@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_missing_pictures(split, data):
    (data.root / split / '3.jpg').unlink()
    (said,) = check(config(data))[0]
    assert f'{split}/3.jpg, does not exist (1 of 4' in said


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
    assert not errors and 'turn or mirror 1 picture' in said


def test_pictures_of_another_size(data):
    Image.new('RGB', (WIDTH, HEIGHT + 2)).save(data.root / 'val2017/1.jpg')
    (said,) = check(config(data))[0]
    assert '64x48 in the annotations and 64x50 as loaded' in said


@pytest.mark.parametrize(
    ('content', 'words'), [(b'', 'is empty'), (b'<html>', 'is no picture')]
)
def test_files_that_are_no_pictures(content, words, data):
    cfg = config(data)
    path = data.root / 'train2017' / '2.jpg'
    path.write_bytes(content)
    (said,) = check(cfg)[0]
    assert f'{path} {words} (1 of 4 pictures' in said
