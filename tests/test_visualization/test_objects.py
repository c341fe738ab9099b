# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Shares on objects, by hand."""

import numpy as np
import pytest
import torch

from mmdat.visualization import BlockRecord, Frame
from mmdat.visualization.objects import mean_on_objects, on_objects

FRAME = Frame((8, 10), (1.0, 1.0), (-2.0, 0.0))  # two columns are cut off
POINTS = [[2.0, 1.0], [3.4, 4.6], [9.0, 7.0], [-3.0, 2.0]]


def record(received=True):
    """Four points in two groups of two heads, 2 x 1 keys."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    shares = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.4, 0.6]])
    return BlockRecord(
        stage=2,
        block=1,
        stride=4,
        map_size=(2, 2),
        frames=(FRAME,),
        input_size=(8, 8),
        points_xy=points.reshape(1, 2, 2, 1, 2),
        reference_xy=points[:2].reshape(1, 2, 1, 2),
        inside=torch.ones(1, 2, 2, 1, dtype=torch.bool),
        clamped=torch.zeros(1, 2, 2, 1, dtype=torch.bool),
        received=shares.reshape(1, 4, 2, 1) if received else None,
        queries_xy=torch.zeros(1, 0, 2),
        weights=torch.zeros(1, 4, 0, 2, 1),
    )


def test_shares_by_hand():
    mask = np.zeros((8, 10), bool)
    mask[5, 3] = mask[7, 9] = mask[1, 0] = True
    one = on_objects(record(), mask)
    # Of 64 pixels that are seen two; the one at (0, 1) is cut off.
    assert one.area == pytest.approx(2 / 64)
    # (3.4, 4.6) is next to pixel (3, 5), (9, 7) is one; the last is outside.
    assert one.points == 0.5 and one.reference == 0.5
    # Groups receive (0.7, 0.3) and (0.3, 0.7): the second and the third.
    assert one.attention == pytest.approx((0.3 + 0.3) / 2)
    other = on_objects(record(), np.ones((8, 10), bool))
    assert (other.area, other.points) == (1.0, 0.75)
    (mean,) = mean_on_objects([one, other])
    assert (mean.stage, mean.block, mean.points) == (2, 1, 0.625)


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match=r'size of the picture, \(8, 10\)'):
        on_objects(record(), np.ones((10, 8), bool))
    with pytest.raises(ValueError, match='received=True'):
        on_objects(record(received=False), np.ones((8, 10), bool))
