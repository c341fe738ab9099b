# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Where keys and queries lie, in normalised coordinates, always (y, x).

The two architectures place the same pixel centres differently:

* `dat` (DAT, CVPR 2022): half pixels over the size, 2 (i + 0.5) / n - 1, for
  the keys' reference points and for the queries;
* `dat_pp` (DAT++): references 2 (i + 0.5) / (n - 1) - 1, so that the last row
  and column lie a little outside [-1, 1]; queries 2 i / (n - 1) - 1.

A single row or column divides by zero in DAT++; it lies at 0 here.
"""

import numpy as np

FAMILIES = ('dat', 'dat_pp')


def _check(family: str) -> None:
    if family not in FAMILIES:
        raise ValueError(f'family must be one of {FAMILIES}, not {family!r}')


def _reference_axis(count: int, family: str) -> np.ndarray:
    centres = np.arange(count) + 0.5
    if family == 'dat':
        return 2 * centres / count - 1
    if count == 1:
        return np.zeros(1)
    return 2 * centres / (count - 1) - 1


def _query_axis(count: int, family: str) -> np.ndarray:
    if family == 'dat':
        return 2 * (np.arange(count) + 0.5) / count - 1
    if count == 1:
        return np.zeros(1)
    return 2 * np.arange(count) / (count - 1) - 1


def _grid(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(rows, columns, indexing='ij'), axis=-1)


def reference_yx(height: int, width: int, family: str) -> np.ndarray:
    """Where the keys lie before they are moved, (Hk, Wk, 2)."""
    _check(family)
    return _grid(
        _reference_axis(height, family), _reference_axis(width, family)
    )


def query_yx(height: int, width: int, family: str) -> np.ndarray:
    """Where the queries lie when a bias table is read, (H, W, 2)."""
    _check(family)
    return _grid(_query_axis(height, family), _query_axis(width, family))


def _reach(count: int, family: str) -> float:
    """How far an offset of 1 moves a key along an axis of `count` keys."""
    if family == 'dat':
        return 1 / count
    return 1 / (count - 1) if count > 1 else 0.0


def deformed_points_yx(
    offset_yx: np.ndarray, family: str, range_factor: float
) -> np.ndarray:
    """Where the keys are sampled.

    With a range factor s >= 0 the points are reference + s tanh(offset) / n,
    n the number of keys along the axis (less one in DAT++), and may leave
    [-1, 1]. A negative s means no range: reference + offset, clamped to
    [-1, 1]. Released DAT models use s = 2, DAT++ models s = -1.

    Args:
        offset_yx: What the offset network says, (Hk, Wk, 2).

    Returns:
        (Hk, Wk, 2).
    """
    height, width, _ = offset_yx.shape
    reference = reference_yx(height, width, family)
    if range_factor < 0:
        return np.clip(reference + offset_yx, -1, 1)
    reach = np.array([_reach(height, family), _reach(width, family)])
    return reference + range_factor * np.tanh(offset_yx) * reach
