# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Writing scenes as ADE20K: one label PNG beside each picture."""

from pathlib import Path

import cv2
import numpy as np

from .glyphs import CLASSES
from .scene import Scene

# In ADE20K's labels 0 is "no certain class", which ``reduce_zero_label=True``
# turns into the ignored 255, and classes count from 1. Ours are the
# photograph behind (1) and the digits (2 to 11).
SEGMENTATION_CLASSES = ('photograph', *CLASSES)
SPLITS = {'train': 'training', 'val': 'validation'}


def label_map(scene: Scene) -> np.ndarray:
    """Labels (H, W), uint8; the half-transparent edges of digits are 0."""
    labels = np.ones(scene.edges.shape, np.uint8)
    for digit in scene.instances:
        labels[digit.mask] = digit.label + 2
    labels[scene.edges] = 0
    return labels


def write_labels(root: Path, split: str, stem: str, scene: Scene) -> None:
    """Writes ``annotations/<split>/<stem>.png``."""
    folder = root / 'annotations' / SPLITS[split]
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f'{stem}.png'), label_map(scene))
