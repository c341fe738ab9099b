# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A small data set in COCO's format, and a config that reads it."""

import json

import family
from PIL import Image

from mmdat.engine.data_check import check_data_and_model
from mmdat.engine.data_files import set_data_root
from mmdat.utils.errors import UserError

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


def write_files(tmp_path):
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


def edited(key, number=0, **changes):
    """A function that changes an entry of a file; ... removes a value."""

    def change(whole):
        entry = whole[key][number]
        entry.update(changes)
        for name, value in changes.items():
            if value is ...:
                del entry[name]

    return change


def annotation(**changes):
    """A function that changes the second annotation, of image 1."""
    return edited('annotations', 1, **changes)
