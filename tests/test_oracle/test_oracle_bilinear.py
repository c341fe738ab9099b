# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Bilinear reading: by hand, one by one against all at once, and torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle.bilinear import (
    bilinear_sample,
    sample_points,
    sample_points_loop,
    to_pixels,
)

CLOSE = dict(rtol=0, atol=1e-12)
# Row 0 holds 0 1 2 3, row 1 holds 10 11 12 13.
MAP = np.array([[0.0, 1, 2, 3], [10, 11, 12, 13]])[..., None]


def test_corners_are_aligned():
    assert to_pixels(np.array([-1.0, 0.0, 1.0]), 5).tolist() == [0, 2, 4]
    assert to_pixels(0.7, 1) == 0


@pytest.mark.parametrize(
    'y,x,value',
    [
        (0, 3, 3),
        (1, 0, 10),
        (0.5, 1.25, 6.25),
        (1.5, 2, 6),  # half the weight lies below the map
        (-0.25, 3.5, 0.75 * 0.5 * 3),
        (2, 1, 0),
        (0.5, -1, 0),
        (-3, 9, 0),
    ],
)
def test_one_place_by_hand(y, x, value):
    np.testing.assert_allclose(bilinear_sample(MAP, y, x), [value], **CLOSE)


def points(shape):
    rng = np.random.default_rng(0)
    points_yx = rng.uniform(-1.6, 1.6, shape + (2,))
    points_yx.reshape(-1, 2)[:4] = [[-1, -1], [1, 1], [-1, 1], [0, 0]]
    return points_yx


@pytest.mark.parametrize('height,width', [(2, 4), (5, 3), (1, 6), (7, 1)])
def test_loop_vectorised_and_torch_agree(height, width):
    rng = np.random.default_rng(1)
    image = rng.standard_normal((height, width, 3))
    points_yx = points((9, 11))
    loop = sample_points_loop(image, points_yx)
    fast = sample_points(image, points_yx)
    theirs = F.grid_sample(
        torch.from_numpy(image.transpose(2, 0, 1))[None],
        torch.from_numpy(points_yx[..., ::-1].copy())[None],
        padding_mode='zeros',
        align_corners=True,
    )[0].permute(1, 2, 0)
    assert loop.shape == (9, 11, 3)
    np.testing.assert_allclose(fast, loop, **CLOSE)
    np.testing.assert_allclose(loop, theirs.numpy(), **CLOSE)
