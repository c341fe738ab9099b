# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Writing scenes as COCO: boxes and masks in one JSON per split."""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from .glyphs import CLASSES
from .scene import Instance


class CocoWriter:
    """Collects the annotations of one split.

    Category ids are 1 to 10 for the digits 0 to 9, as COCO counts from 1.

    Args:
        info: Stored under ``info``.
    """

    def __init__(self, info: dict) -> None:
        self.content = dict(
            info=info,
            images=[],
            annotations=[],
            categories=[
                dict(id=i + 1, name=name, supercategory='digit')
                for i, name in enumerate(CLASSES)
            ],
        )

    def add(
        self,
        file_name: str,
        size: int,
        background: str,
        digits: list[Instance],
    ) -> None:
        """Adds a square picture and its digits."""
        image_id = len(self.content['images']) + 1
        self.content['images'].append(
            dict(
                id=image_id,
                file_name=file_name,
                height=size,
                width=size,
                photograph=background,
            )
        )
        for digit in digits:
            annotation_id = len(self.content['annotations']) + 1
            self.content['annotations'].append(
                dict(
                    id=annotation_id,
                    image_id=image_id,
                    category_id=digit.label + 1,
                    iscrowd=0,
                    glyph=digit.number,
                    **_outline(digit.mask),
                )
            )

    def save(self, path: Path) -> None:
        """Writes the JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content))


def _outline(mask: np.ndarray) -> dict:
    """Mask, box (x, y, width, height) and area, in COCO's terms."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(
        bbox=coco_mask.toBbox(encoded).tolist(),
        area=float(coco_mask.area(encoded)),
        segmentation=dict(
            size=encoded['size'], counts=encoded['counts'].decode('ascii')
        ),
    )
