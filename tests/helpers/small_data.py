# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The least that COCO, ADE20K and ImageNet can be: a few validation pictures.

Names of classes and folders are those of the real data sets, so that configs
and released files need no change.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# COCO numbers its 80 categories from 1 to 90.
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = [i for i in range(1, 91) if i not in _GAPS]


def imagenet(
    root: Path,
    pictures: list[tuple[Image.Image, int]],
    suffix: str = '.png',
    **options: Any,
) -> None:
    """Pictures and their classes, 0 to 999."""
    (root / 'val').mkdir(parents=True)
    (root / 'meta').mkdir()
    lines = []
    for i, (image, label) in enumerate(pictures):
        image.save(root / 'val' / f'{i}{suffix}', **options)
        lines.append(f'{i}{suffix} {label}\n')
    (root / 'meta' / 'val.txt').write_text(''.join(lines))


def coco(
    root: Path,
    pictures: list[tuple[Image.Image, int, tuple[float, ...]]],
    mask: np.ndarray | None = None,
) -> None:
    """Pictures with one object each: its category and its box, x y w h.

    The mask of an object is its box, or else `mask` (H, W).
    """
    from mmdet.datasets import CocoDataset
    from pycocotools.mask import encode

    (root / 'val2017').mkdir(parents=True)
    (root / 'annotations').mkdir()
    images, annotations = [], []
    for i, (image, category, (x, y, width, height)) in enumerate(pictures, 1):
        image.save(root / 'val2017' / f'{i}.png')
        images.append(
            dict(
                id=i,
                file_name=f'{i}.png',
                height=image.height,
                width=image.width,
            )
        )
        right, bottom = x + width, y + height
        outline: Any = [[x, y, right, y, right, bottom, x, bottom]]
        if mask is not None:
            outline = encode(np.asfortranarray(mask, np.uint8))
            outline['counts'] = outline['counts'].decode()
        annotations.append(
            dict(
                id=i,
                image_id=i,
                category_id=category,
                bbox=[x, y, width, height],
                area=width * height,
                iscrowd=0,
                segmentation=outline,
            )
        )
    categories = [
        dict(id=i, name=name)
        for i, name in zip(
            COCO_IDS, CocoDataset.METAINFO['classes'], strict=True
        )
    ]
    content = dict(
        images=images, annotations=annotations, categories=categories
    )
    path = root / 'annotations' / 'instances_val2017.json'
    path.write_text(json.dumps(content))


def ade20k(root: Path, pictures: list[tuple[Image.Image, np.ndarray]]) -> None:
    """Pictures and labels (H, W): 0 for none, 1 to 150."""
    for kind in ('images', 'annotations'):
        (root / kind / 'validation').mkdir(parents=True)
    for i, (image, labels) in enumerate(pictures):
        image.save(root / 'images' / 'validation' / f'{i}.jpg', quality=100)
        Image.fromarray(labels.astype(np.uint8)).save(
            root / 'annotations' / 'validation' / f'{i}.png'
        )
