# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The objects: handwritten digits of scikit-learn, drawn large."""

from typing import NamedTuple

import cv2
import numpy as np
from sklearn.datasets import load_digits

CLASSES = tuple('0123456789')
VAL_SHARE = 0.2


class Glyph(NamedTuple):
    """One handwritten digit.

    Attributes:
        number: Its place in scikit-learn's set, which identifies it.
        label: 0 to 9.
        ink: (8, 8), 0 to 1.
    """

    number: int
    label: int
    ink: np.ndarray


def load_glyphs(split: str) -> list[Glyph]:
    """All digits of ``'train'`` or ``'val'``; no digit is in both."""
    digits = load_digits()
    first_val = int(len(digits.target) * (1 - VAL_SHARE))
    numbers = range(len(digits.target))
    chosen = numbers[:first_val] if split == 'train' else numbers[first_val:]
    return [
        Glyph(i, int(digits.target[i]), digits.images[i] / 16) for i in chosen
    ]


def draw(glyph: Glyph, size: int, angle: float) -> np.ndarray:
    """Draws a digit, cut to its ink.

    Args:
        glyph: The digit.
        size: Height before it is turned, in pixels.
        angle: Turn, in degrees anticlockwise.

    Returns:
        Opacity (height, width), float32 in 0 to 1.
    """
    # A rim of paper, so that nothing is cut off when the digit is turned.
    paper = np.pad(glyph.ink.astype(np.float32), 3)
    scale = size / 8
    side = round(paper.shape[0] * scale)
    large = cv2.resize(paper, (side, side), interpolation=cv2.INTER_CUBIC)
    centre = ((side - 1) / 2, (side - 1) / 2)
    turn = cv2.getRotationMatrix2D(centre, angle, 1)
    turned = cv2.warpAffine(large, turn, (side, side), flags=cv2.INTER_LINEAR)
    # Steepen the blurred edge that enlarging leaves.
    opacity = np.clip((turned - 0.35) / 0.25, 0, 1)
    rows, columns = np.nonzero(opacity > 0)
    return opacity[
        rows.min() : rows.max() + 1, columns.min() : columns.max() + 1
    ]
