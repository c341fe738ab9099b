# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The backgrounds: photographs that ship inside scikit-image."""

from collections.abc import Callable

import cv2
import numpy as np
from skimage import color, data

# No photograph is in both splits.
PHOTOGRAPHS: dict[str, dict[str, Callable[[], np.ndarray]]] = {
    'train': dict(
        astronaut=data.astronaut,
        brick=data.brick,
        camera=data.camera,
        clock=data.clock,
        coffee=data.coffee,
        gravel=data.gravel,
        hubble=data.hubble_deep_field,
        moon=data.moon,
        rocket=data.rocket,
        tissue=data.immunohistochemistry,
    ),
    'val': dict(
        cat=data.chelsea,
        coins=data.coins,
        grass=data.grass,
        retina=data.retina,
    ),
}


def load_photographs(split: str) -> dict[str, np.ndarray]:
    """The photographs of ``'train'`` or ``'val'``, RGB uint8, by name."""
    photographs = {}
    for name, load in PHOTOGRAPHS[split].items():
        photograph = load()
        if photograph.ndim == 2:
            photograph = (color.gray2rgb(photograph)).astype(np.uint8)
        photographs[name] = np.ascontiguousarray(photograph[..., :3])
    return photographs


def background(
    photograph: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """A random square of a photograph, perhaps mirrored, (size, size, 3)."""
    height, width = photograph.shape[:2]
    side = int(rng.uniform(0.4, 1) * min(height, width))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    square = photograph[top : top + side, left : left + side]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return cv2.resize(
        np.ascontiguousarray(square),
        (size, size),
        interpolation=cv2.INTER_AREA,
    )
