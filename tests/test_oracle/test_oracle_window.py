# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Local and shifted windows, by hand on a 3x3 map with windows of 2."""

import numpy as np
import pytest
from oracle.window import (
    pad_to_multiple,
    regions,
    relative_bias,
    shifted_window_attention,
    window_attention,
)

CLOSE = dict(rtol=0, atol=1e-12)
MAP = np.arange(1.0, 10).reshape(3, 3, 1)


def transparent_params(table=None, value_bias=0.0, channels=1, heads=1):
    """Queries and keys are zero, values pass through."""
    weight = np.zeros((3 * channels, channels))
    weight[2 * channels :] = np.eye(channels)
    bias = np.zeros(3 * channels)
    bias[2 * channels :] = value_bias
    return {
        'proj_qkv.weight': weight,
        'proj_qkv.bias': bias,
        'proj_out.weight': np.eye(channels),
        'proj_out.bias': np.zeros(channels),
        'relative_position_bias_table': np.zeros((9, heads))
        if table is None
        else table,
    }


def test_padded_places_are_ordinary_keys():
    # Windows: the four at the top left; 3, 6 with two padded ones; ...
    expected = [[3, 3, 9 / 4], [3, 3, 9 / 4], [15 / 4, 15 / 4, 9 / 4]]
    out = window_attention(MAP, transparent_params(), 1, 2)
    np.testing.assert_allclose(out[..., 0], expected, **CLOSE)


def test_padding_precedes_the_bias_of_the_values():
    out = window_attention(MAP, transparent_params(value_bias=1.0), 1, 2)
    assert out[2, 2, 0] == pytest.approx((9 + 4 * 1) / 4)


def test_bias_is_indexed_by_query_minus_key():
    # dy = 1, dx = 0: row (1 + 1) * 3 + (0 + 1). The query lies below.
    table = np.zeros((9, 1))
    table[7] = 1e4
    out = window_attention(MAP, transparent_params(table), 1, 2)
    # The upper rows of a window find no such key and see all four.
    expected = [[3, 3, 9 / 4], [1, 2, 3], [15 / 4, 15 / 4, 9 / 4]]
    np.testing.assert_allclose(out[..., 0], expected, **CLOSE)


def test_relative_bias_has_one_row_per_displacement():
    table = np.arange(25.0)[:, None]
    bias = relative_bias(table, 3)[0]
    assert bias.shape == (9, 9)
    assert (np.diag(bias) == 12).all()
    assert bias[0, 8] == 0  # query top left, key bottom right: dy = dx = -2
    assert bias[8, 0] == 24
    assert bias[0, 2] == 10 and bias[0, 6] == 2


def test_shifted_windows_keep_the_regions_apart():
    # Rolled by 1 (= ceil(2 / 2)) on the padded 4x4 map, the windows hold
    # rows 1, 2 and rows 3, 0; row 3 is padding and from another region.
    out = shifted_window_attention(MAP, transparent_params(), 1, 2)
    expected = [[1, 2.5, 2.5], [5.5, 7, 7], [5.5, 7, 7]]
    np.testing.assert_allclose(out[..., 0], expected, **CLOSE)


def test_the_shift_is_the_ceiling_of_half_the_window():
    # A window of 3 on a 6x6 map is rolled by 2: rows 2..4 stay together,
    # and of rows 5, 0, 1 the two last.
    x = np.tile(np.arange(6.0)[:, None, None], (1, 6, 1))
    table = np.zeros((25, 1))
    out = shifted_window_attention(x, transparent_params(table), 1, 3)
    np.testing.assert_allclose(out[:, 0, 0], [0.5, 0.5, 3, 3, 3, 5], **CLOSE)


def test_regions():
    assert regions(14, 7, 4).tolist() == [0] * 7 + [1] * 3 + [2] * 4
    assert regions(7, 7, 4).tolist() == [1] * 3 + [2] * 4


def test_maps_that_fit_are_not_padded():
    assert pad_to_multiple(np.ones((4, 6, 1)), 2).shape == (4, 6, 1)
    assert pad_to_multiple(np.ones((4, 6, 1)), 4).shape == (4, 8, 1)


def test_heads_are_runs_of_channels_with_their_own_bias():
    table = np.zeros((9, 2))
    table[4, 1] = 1e4  # the second head sees only itself
    x = np.random.default_rng(0).standard_normal((2, 2, 4))
    out = window_attention(
        x, transparent_params(table, channels=4, heads=2), 2, 2
    )
    np.testing.assert_allclose(out[..., 2:], x[..., 2:], **CLOSE)
    np.testing.assert_allclose(
        out[..., :2],
        np.broadcast_to(x[..., :2].mean((0, 1)), (2, 2, 2)),
        **CLOSE,
    )
