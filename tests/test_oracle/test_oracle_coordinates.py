# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Where keys and queries lie, by hand."""

import numpy as np
import pytest
from oracle.coordinates import deformed_points_yx, query_yx, reference_yx

CLOSE = dict(rtol=0, atol=1e-15)


def axes(grid_yx):
    """The rows' and columns' coordinates of a regular grid."""
    rows, columns = grid_yx[:, 0, 0], grid_yx[0, :, 1]
    assert np.array_equal(
        grid_yx[..., 0], np.tile(rows[:, None], len(columns))
    )
    assert np.array_equal(grid_yx[..., 1], np.tile(columns, (len(rows), 1)))
    return rows, columns


def test_dat_counts_half_pixels_over_the_size():
    for grid in (reference_yx, query_yx):
        rows, columns = axes(grid(2, 4, 'dat'))
        np.testing.assert_allclose(rows, [-0.5, 0.5], **CLOSE)
        np.testing.assert_allclose(
            columns, [-0.75, -0.25, 0.25, 0.75], **CLOSE
        )


def test_dat_pp_references_leave_the_map_and_queries_do_not():
    rows, columns = axes(reference_yx(3, 5, 'dat_pp'))
    np.testing.assert_allclose(rows, [-0.5, 0.5, 1.5], **CLOSE)
    np.testing.assert_allclose(
        columns, [-0.75, -0.25, 0.25, 0.75, 1.25], **CLOSE
    )
    rows, columns = axes(query_yx(3, 5, 'dat_pp'))
    np.testing.assert_allclose(rows, [-1, 0, 1], **CLOSE)
    np.testing.assert_allclose(columns, [-1, -0.5, 0, 0.5, 1], **CLOSE)


@pytest.mark.parametrize('family', ['dat', 'dat_pp'])
@pytest.mark.parametrize('grid', [reference_yx, query_yx])
def test_a_single_row_or_column_lies_in_the_middle(family, grid):
    assert (grid(1, 4, family)[..., 0] == 0).all()
    assert (grid(4, 1, family)[..., 1] == 0).all()
    assert np.isfinite(grid(1, 1, family)).all()


def test_range_of_dat():
    # tanh saturates: +-2 / n from the reference, and nothing is clamped
    offset = np.zeros((2, 4, 2))
    offset[0, 0], offset[1, 3] = (-50, -50), (50, 50)
    moved = deformed_points_yx(offset, 'dat', 2) - reference_yx(2, 4, 'dat')
    np.testing.assert_allclose(moved[0, 0], [-1, -0.5], **CLOSE)
    np.testing.assert_allclose(moved[1, 3], [1, 0.5], **CLOSE)
    assert not moved.reshape(-1, 2)[1:-1].any()
    assert deformed_points_yx(offset, 'dat', 2).max() == 1.5


def test_range_of_dat_pp():
    offset = np.full((3, 5, 2), np.arctanh(0.5))
    moved = deformed_points_yx(offset, 'dat_pp', 3) - reference_yx(
        3, 5, 'dat_pp'
    )
    np.testing.assert_allclose(moved[..., 0], 3 * 0.5 / 2, **CLOSE)
    np.testing.assert_allclose(moved[..., 1], 3 * 0.5 / 4, **CLOSE)


def test_no_range_clamps():
    offset = np.zeros((3, 5, 2))
    offset[1, 1], offset[0, 0] = (0.2, -0.1), (-9, 9)
    points_yx = deformed_points_yx(offset, 'dat_pp', -1)
    np.testing.assert_allclose(points_yx[1, 1], [0.7, -0.35], **CLOSE)
    np.testing.assert_allclose(points_yx[0, 0], [-1, 1], **CLOSE)
    np.testing.assert_allclose(points_yx[2, 4], [1, 1], **CLOSE)


@pytest.mark.parametrize('range_factor', [-1, 0, 2])
@pytest.mark.parametrize('family', ['dat', 'dat_pp'])
def test_single_keys_stay_finite(family, range_factor):
    offset = np.full((1, 1, 2), 0.3)
    assert np.isfinite(deformed_points_yx(offset, family, range_factor)).all()
    if family == 'dat_pp' and range_factor >= 0:
        assert not deformed_points_yx(offset, family, range_factor).any()


def test_unknown_family():
    with pytest.raises(ValueError, match="not 'v2'"):
        reference_yx(2, 2, 'v2')
