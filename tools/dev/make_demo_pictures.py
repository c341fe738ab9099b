# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Makes demo/pictures: digits on photographs that no model was trained on.

As the digits data set is made, but 480 x 360 pixels, one of each photograph
of its validation set.
"""

from pathlib import Path

import cv2
import numpy as np

from mmdat.datasets.digits.coco import CocoWriter
from mmdat.datasets.digits.glyphs import load_glyphs
from mmdat.datasets.digits.photographs import load_photographs
from mmdat.datasets.digits.scene import make_scene

OUT = Path(__file__).resolve().parents[2] / 'demo' / 'pictures'
HEIGHT, WIDTH, SEED = 360, 480, 4
DIGITS = {'cat': 3, 'coins': 4, 'grass': 5, 'retina': 4}


def cut(photograph: np.ndarray) -> np.ndarray:
    """The largest part in the middle of the wanted shape, (H, W, 3)."""
    height, width = photograph.shape[:2]
    scale = max(HEIGHT / height, WIDTH / width)
    size = round(width * scale), round(height * scale)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    large = cv2.resize(photograph, size, interpolation=way)
    top, left = (size[1] - HEIGHT) // 2, (size[0] - WIDTH) // 2
    return large[top : top + HEIGHT, left : left + WIDTH]


def main() -> None:
    """Writes the pictures and their annotations."""
    OUT.mkdir(parents=True, exist_ok=True)
    coco = CocoWriter(dict(description='Demo pictures', split='val'))
    photographs, glyphs = load_photographs('val'), load_glyphs('val')
    for number, (name, count) in enumerate(DIGITS.items()):
        rng = np.random.default_rng([SEED, number])
        chosen = rng.choice(len(glyphs), count, replace=False)
        scene = make_scene(
            cut(photographs[name]),
            [glyphs[i] for i in chosen],
            (0.2 * HEIGHT, 0.38 * HEIGHT),
            rng,
        )
        path = OUT / f'{name}.jpg'
        cv2.imwrite(
            str(path),
            cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, 85],
        )
        coco.add(path.name, WIDTH, name, scene.instances)
        coco.content['images'][-1]['height'] = HEIGHT
    coco.save(OUT / 'annotations.json')


if __name__ == '__main__':
    main()
