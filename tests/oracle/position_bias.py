# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Scores for where a deformed key lies relative to a query.

The kinds of the papers' ablations; heads of one group share its points.
"""

import numpy as np

from .bilinear import sample_points
from .layers import linear


def displacement_yx(query_yx: np.ndarray, points_yx: np.ndarray) -> np.ndarray:
    """Query minus key, in normalised coordinates.

    Args:
        query_yx: (Nq, 2).
        points_yx: (Ns, 2).

    Returns:
        (Nq, Ns, 2).
    """
    return query_yx[:, None, :] - points_yx[None, :, :]


def table_bias(
    table: np.ndarray, query_yx: np.ndarray, points_yx: np.ndarray
) -> np.ndarray:
    """Reads a table bilinearly at half the displacement, zeros outside.

    Args:
        table: (heads, 2 Sh - 1, 2 Sw - 1).
        query_yx: (Nq, 2).
        points_yx: (groups, Ns, 2).

    Returns:
        (heads, Nq, Ns).
    """
    groups = len(points_yx)
    biases = []
    for points, tables in zip(points_yx, np.split(table, groups), strict=True):
        half = displacement_yx(query_yx, points) / 2
        bias = sample_points(tables.transpose(1, 2, 0), half)
        biases.append(bias.transpose(2, 0, 1))
    return np.concatenate(biases)


def log_continuous_bias(
    params: dict, query_yx: np.ndarray, points_yx: np.ndarray
) -> np.ndarray:
    """An MLP 2-32-(heads / groups) on log-spaced displacements.

    Its input is sign(d) log2(1 + |4 d|) / log2(8) with d the displacement,
    not halved; ReLU between the layers, no bias in the second. All groups
    share the MLP.

    Args:
        params: `0.weight` (32, 2), `0.bias`, `2.weight` (heads/groups, 32).
        query_yx: (Nq, 2).
        points_yx: (groups, Ns, 2).

    Returns:
        (heads, Nq, Ns).
    """
    biases = []
    for points in points_yx:
        away = 4 * displacement_yx(query_yx, points)
        spaced = np.sign(away) * np.log2(1 + np.abs(away)) / np.log2(8)
        hidden = linear(spaced, params['0.weight'], params['0.bias'])
        bias = linear(np.maximum(hidden, 0), params['2.weight'])
        biases.append(bias.transpose(2, 0, 1))
    return np.concatenate(biases)
