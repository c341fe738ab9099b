# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Bilinear reading of a map at continuous places, zeros outside."""

import math

import numpy as np


def to_pixels(coordinate, size: int):
    """Normalised to pixel units with corners aligned: -1 -> 0, 1 -> size-1.

    Args:
        coordinate: Normalised coordinate along one axis, any shape.
        size: Number of pixels along that axis.
    """
    return (coordinate + 1) / 2 * (size - 1)


def bilinear_sample(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """The value at one place.

    Args:
        image: (H, W, C).
        y: Row in pixel units; 0 is the centre of the first row.
        x: Column in pixel units.

    Returns:
        (C,): the four pixels around (y, x), each weighted by its nearness;
        pixels outside the map count as zero.
    """
    height, width, channels = image.shape
    top, left = math.floor(y), math.floor(x)
    value = np.zeros(channels)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                nearness = (1 - abs(y - row)) * (1 - abs(x - column))
                value += nearness * image[row, column]
    return value


def sample_points_loop(image: np.ndarray, points_yx: np.ndarray) -> np.ndarray:
    """The values at many places, one by one.

    Args:
        image: (H, W, C).
        points_yx: (..., 2), normalised, corners aligned.

    Returns:
        (..., C).
    """
    height, width, channels = image.shape
    values = [
        bilinear_sample(image, to_pixels(y, height), to_pixels(x, width))
        for y, x in points_yx.reshape(-1, 2)
    ]
    return np.reshape(values, points_yx.shape[:-1] + (channels,))


def sample_points(image: np.ndarray, points_yx: np.ndarray) -> np.ndarray:
    """The same as :func:`sample_points_loop`, all places at once."""
    height, width, _ = image.shape
    y = to_pixels(points_yx[..., 0], height)
    x = to_pixels(points_yx[..., 1], width)
    top, left = np.floor(y), np.floor(x)
    value = 0
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = (
                (row >= 0) & (row < height) & (column >= 0) & (column < width)
            )
            nearness = (1 - np.abs(y - row)) * (1 - np.abs(x - column))
            pixel = image[
                np.where(inside, row, 0).astype(int),
                np.where(inside, column, 0).astype(int),
            ]
            value = value + (inside * nearness)[..., None] * pixel
    return value
