# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""One picture: digits on a background, and where they are."""

import colorsys
from typing import NamedTuple

import numpy as np

from .glyphs import Glyph, draw

Box = tuple[int, int, int, int]  # top, left, bottom, right


class Instance(NamedTuple):
    """A digit in a picture.

    Attributes:
        label: 0 to 9.
        number: Which handwritten digit it is.
        mask: Its visible pixels (H, W), bool.
    """

    label: int
    number: int
    mask: np.ndarray


class Scene(NamedTuple):
    """A picture and its annotation.

    Attributes:
        image: (H, W, 3), RGB uint8.
        instances: The digits, those behind first.
        edges: Half-transparent pixels (H, W), bool, of no certain class.
    """

    image: np.ndarray
    instances: list[Instance]
    edges: np.ndarray


def _ink(behind: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour that stands out from the mean of the pixels behind, RGB."""
    darkness = behind.mean() / 255
    value = rng.uniform(0.85, 1) if darkness < 0.5 else rng.uniform(0, 0.35)
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 1), value)
    return 255 * np.array(rgb, dtype=np.float32)


def _cover(box: Box, other: Box) -> float:
    """Area two boxes share, over that of the smaller."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return max(height, 0) * max(width, 0) / min(areas)


def _find_room(
    shape: tuple[int, int],
    room: tuple[int, int],
    taken: list[Box],
    overlap: float,
    rng: np.random.Generator,
) -> Box | None:
    """A random place for a shape that hides little of the other shapes."""
    if shape[0] > room[0] or shape[1] > room[1]:
        return None
    for _ in range(30):
        top = int(rng.integers(room[0] - shape[0] + 1))
        left = int(rng.integers(room[1] - shape[1] + 1))
        box = (top, left, top + shape[0], left + shape[1])
        if all(_cover(box, other) <= overlap for other in taken):
            return box
    return None


def make_scene(
    background: np.ndarray,
    glyphs: list[Glyph],
    sizes: tuple[float, float],
    rng: np.random.Generator,
    overlap: float = 0.1,
) -> Scene:
    """Pastes digits on a background, at random places, sizes and turns.

    Args:
        background: (H, W, 3), RGB uint8.
        glyphs: The digits to paste; a digit without a free place is left out.
        sizes: Smallest and largest height of a digit, in pixels.
        rng: Random number generator.
        overlap: Largest share of a digit's box that may lie in another's.
    """
    image = background.astype(np.float32)
    edges = np.zeros(image.shape[:2], bool)
    instances: list[Instance] = []
    taken: list[Box] = []
    for glyph in glyphs:
        opacity = draw(glyph, round(rng.uniform(*sizes)), rng.uniform(-30, 30))
        box = _find_room(opacity.shape, edges.shape, taken, overlap, rng)
        if box is None:
            continue
        place = (slice(box[0], box[2]), slice(box[1], box[3]))
        ink = _ink(image[place], rng)
        image[place] += opacity[..., None] * (ink - image[place])

        touched, solid = opacity > 0, opacity >= 0.5
        uncertain = (opacity > 0.1) & (opacity < 0.9)
        edges[place] = np.where(touched, uncertain, edges[place])
        for earlier in instances:
            earlier.mask[place] &= ~solid
        mask = np.zeros(edges.shape, bool)
        mask[place] = solid
        instances.append(Instance(glyph.label, glyph.number, mask))
        taken.append(box)

    noise = rng.normal(0, 3, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return Scene(image, instances, edges)
