# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What areas and colours of circles mean, for panels beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Normalize

# A circle of average weight is this wide, relative to the room for one point,
# unless the circle of the largest weight would be wider than this, relative to
# the shorter side of the picture. Areas are proportional to weights, but for
# circles too small to be seen, which are dots of this width.
AVERAGE, LARGEST, SMALLEST = 0.42, 0.13, 0.004

MARGIN = 0.1  # of the shorter side, around it; points further out are left out


@dataclass(frozen=True)
class Scale:
    """What colours and areas mean, and how much is shown around the picture.

    Panels beside each other share one.

    Attributes:
        norm: Of the colours.
        width: Of a circle of weight 1, in pixels of the picture.
        largest: Weight of the largest circle.
        extent: Edges (left, right, bottom, top) of what is shown.
        left_out: How many points lie further out.
    """

    norm: Normalize
    width: float
    largest: float
    extent: tuple[float, float, float, float]
    left_out: int

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        drawn: Sequence[tuple[np.ndarray, np.ndarray]],
        values: Sequence[np.ndarray] | None = None,
        starts: Sequence[np.ndarray] = (),
    ) -> 'Scale':
        """The scale for some panels of one picture.

        Args:
            shape: (H, W) of the picture.
            drawn: Points (N, 2) and weights (N,) of each panel.
            values: What is coloured, of each panel, on a scale that starts
                at 0; None for the weights, on one that starts at the
                smallest.
            starts: Points (N, 2) that lines start from, to be shown as well.
        """
        height, width = shape[:2]
        side = min(height, width)
        largest = max(float(weights.max()) for _, weights in drawn)
        wide = min(
            AVERAGE
            * np.sqrt(height * width / len(weights))
            / np.sqrt(max(float(weights.mean()), 1e-12))
            for _, weights in drawn
        )
        wide = min(wide, LARGEST * side / np.sqrt(max(largest, 1e-12)))
        low, high = np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]])
        limits, left_out = [low, high], 0
        for points, weights in drawn:
            shown = near(points, shape)
            left_out += int((~shown).sum())
            radii = diameters(weights[shown], wide, side)[:, None] / 2
            limits += [*(points[shown] - radii), *(points[shown] + radii)]
        for points in starts:
            limits += [*points[near(points, shape)]]
        left, top = np.min(limits, axis=0)
        right, bottom = np.max(limits, axis=0)
        if values is None:
            values = [weights for _, weights in drawn]
            start = min(float(one.min()) for one in values)
        else:
            start = 0.0
        most = max(float(one.max()) for one in values)
        return cls(
            Normalize(start, max(most, start + 1e-6)),
            float(wide),
            largest,
            (float(left), float(right), float(bottom), float(top)),
            left_out,
        )


def near(points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Which points (N, 2) are on the picture or a little outside, (N,)."""
    margin = MARGIN * min(shape[:2])
    high = np.array([shape[1], shape[0]]) - 0.5 + margin
    return ((points >= -0.5 - margin) & (points <= high)).all(axis=1)


def diameters(weights: np.ndarray, width: float, side: int) -> np.ndarray:
    """Widths of circles (N,), in pixels of the picture."""
    return (width * np.sqrt(weights)).clip(min=SMALLEST * side)
