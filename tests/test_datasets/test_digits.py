# Copyright (c) mmdat contributors. Apache-2.0 licence.
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmdat.datasets.digits import DigitsOptions, make_digits, maker

OPTIONS = DigitsOptions(train=12, val=8, size=96, crops=8, crop_size=48)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', OPTIONS)


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def annotations(root, split):
    path = root / 'coco' / 'annotations' / f'instances_{split}2017.json'
    return json.loads(path.read_text())


def test_same_seed_same_bytes_other_seed_other_pictures(root, tmp_path):
    again = make_digits(tmp_path / 'again', OPTIONS)
    assert content(again) == content(root)
    other = make_digits(tmp_path / 'other', replace(OPTIONS, seed=1))
    name = 'coco/train2017/000000.jpg'
    assert content(other)[name] != content(root)[name]


def test_more_pictures_leave_the_first_ones_alone(root, tmp_path):
    more = make_digits(tmp_path / 'more', replace(OPTIONS, train=14))
    name = 'coco/train2017/000003.jpg'
    assert content(more)[name] == content(root)[name]


def test_splits_share_neither_digits_nor_photographs(root):
    for key in ('photograph', 'glyph'):
        group = 'images' if key == 'photograph' else 'annotations'
        train, val = (
            {entry[key] for entry in annotations(root, split)[group]}
            for split in ('train', 'val')
        )
        assert train and val and not train & val


def test_coco_boxes_masks_and_areas_agree(root):
    path = root / 'coco' / 'annotations' / 'instances_val2017.json'
    coco = COCO(str(path))
    assert len(coco.imgs) == OPTIONS.val and len(coco.cats) == 10
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.shape == (96, 96)
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation['bbox']
        assert (left, top) == (columns.min(), rows.min())
        assert width == columns.max() - columns.min() + 1
        assert height == rows.max() - rows.min() + 1
        assert annotation['area'] == mask.sum() > 0


def test_label_maps_agree_with_masks(root):
    path = root / 'coco' / 'annotations' / 'instances_train2017.json'
    coco = COCO(str(path))
    for image in coco.imgs.values():
        name = image['file_name'].replace('.jpg', '.png')
        labels = cv2.imread(
            str(root / 'ade/annotations/training' / name), cv2.IMREAD_UNCHANGED
        )
        assert labels.dtype == np.uint8 and labels.shape == (96, 96)
        wanted = np.ones_like(labels)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            wanted[mask] = annotation['category_id'] + 1
        certain = labels > 0
        assert (labels == wanted)[certain].all()
        assert certain.mean() > 0.8


def test_masks_lie_on_digits_that_stand_out(root):
    """The pixels inside differ from those around, in every instance."""
    path = root / 'coco' / 'annotations' / 'instances_train2017.json'
    coco = COCO(str(path))
    for annotation in list(coco.anns.values())[:20]:
        name = coco.imgs[annotation['image_id']]['file_name']
        image = cv2.imread(str(root / 'coco/train2017' / name))
        mask = coco.annToMask(annotation)
        around = cv2.dilate(mask, np.ones((9, 9))) - cv2.dilate(
            mask, np.ones((5, 5))
        )
        inside, outside = (image[m > 0].mean(0) for m in (mask, around))
        assert np.abs(inside - outside).max() > 15


def test_folders_of_classes(root):
    for split, each in (('train', 8), ('val', 2)):
        folders = sorted((root / 'imagenet' / split).iterdir())
        assert [f.name for f in folders] == list('0123456789')
        for folder in folders:
            pictures = list(folder.iterdir())
            assert len(pictures) == each
            assert cv2.imread(str(pictures[0])).shape == (48, 48, 3)


def test_single_digits_may_be_larger_and_their_photographs_darker(
    root, tmp_path
):
    options = replace(
        OPTIONS, train=1, val=1, crop_share=(0.8, 0.9), crop_brightness=0.2
    )
    easy = make_digits(tmp_path / 'easy', options)
    corners, spans = {}, {}
    for place in (root, easy):
        images = [
            cv2.imread(str(p)) for p in sorted(place.glob('imagenet/*/*/*'))
        ]
        corners[place] = np.median([i[:3, :3].mean() for i in images])
        bright = [i.max(2) > 200 for i in images]
        spans[place] = np.median(
            [np.ptp(np.nonzero(b)[0]) for b in bright if b.any()]
        )
    assert corners[easy] < 0.5 * corners[root]
    assert 0.6 * 48 < spans[easy] <= 48
    with pytest.raises(ValueError, match='two rising shares'):
        replace(OPTIONS, crop_share=(0.8, 0.5))
    with pytest.raises(ValueError, match='crop_brightness'):
        replace(OPTIONS, crop_brightness=2)


def test_is_made_once(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    assert make_digits(root, OPTIONS) == root
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before


def test_a_set_from_before_an_option_is_still_good(tmp_path):
    root = make_digits(tmp_path / 'old', OPTIONS)
    path = root / maker.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest['options']['crop_brightness']
    path.write_text(json.dumps(manifest))
    assert make_digits(root, OPTIONS) == root
    with pytest.raises(FileExistsError, match='made with'):
        make_digits(root, replace(OPTIONS, crop_brightness=0.5))


def test_other_content_is_never_touched(root, tmp_path):
    with pytest.raises(FileExistsError, match='made with'):
        make_digits(root, replace(OPTIONS, train=13))
    (tmp_path / 'mine').write_text('x')
    with pytest.raises(FileExistsError, match='not a digits data set'):
        make_digits(tmp_path, OPTIONS)
    assert (tmp_path / 'mine').read_text() == 'x'


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(maker, '_make_crops', stop)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / 'digits', OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [(dict(train=0), 'train must be at least 1; got 0'), (dict(size=8), '32')],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DigitsOptions(**wrong)
