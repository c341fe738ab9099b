# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Neighbourhood attention: by hand, and against a mask over all pairs."""

import numpy as np
import pytest
from oracle.layers import attend, linear, merge_heads, split_heads
from oracle.neighborhood import neighborhood_attention, window_start

CLOSE = dict(rtol=0, atol=1e-12)


def random_params(channels, heads, kernel, seed=0):
    rng = np.random.default_rng(seed)
    return {
        'qkv.weight': rng.standard_normal((3 * channels, channels)),
        'qkv.bias': rng.standard_normal(3 * channels),
        'proj.weight': rng.standard_normal((channels, channels)),
        'proj.bias': rng.standard_normal(channels),
        'rpb': rng.standard_normal((heads, 2 * kernel - 1, 2 * kernel - 1)),
    }


def test_the_window_moves_inside_at_a_border():
    assert [window_start(i, 9, 7) for i in range(9)] == [
        0,
        0,
        0,
        0,
        1,
        2,
        2,
        2,
        2,
    ]
    assert [window_start(i, 7, 7) for i in range(7)] == [0] * 7


def test_mean_over_the_window():
    params = random_params(1, 1, 3)
    params['qkv.weight'][:] = [[0], [0], [1]]
    params['qkv.bias'][:] = 0
    params['proj.weight'][:], params['proj.bias'][:] = 1, 0
    params['rpb'][:] = 0
    x = np.arange(20.0).reshape(4, 5, 1)
    out = neighborhood_attention(x, params, 1)[..., 0]
    centres = np.array([6.0, 6, 7, 8, 8])
    np.testing.assert_allclose(
        out, [centres, centres, centres + 5, centres + 5], **CLOSE
    )


def test_bias_is_indexed_by_key_minus_query():
    params = random_params(1, 1, 3)
    params['qkv.weight'][:] = [[0], [0], [1]]
    params['qkv.bias'][:] = 0
    params['proj.weight'][:], params['proj.bias'][:] = 1, 0
    params['rpb'][:] = 0
    params['rpb'][0, 2 + 1, 2 - 1] = 1e4  # the key below and to the left
    x = np.arange(20.0).reshape(4, 5, 1)
    out = neighborhood_attention(x, params, 1)[..., 0]
    np.testing.assert_allclose(out[:3, 1:], x[1:, :4, 0], **CLOSE)


@pytest.mark.parametrize('height,width', [(5, 7), (9, 5), (6, 6)])
def test_against_a_mask_over_all_pairs(height, width):
    heads, channels, kernel = 2, 6, 5
    params = random_params(channels, heads, kernel)
    x = np.random.default_rng(1).standard_normal((height, width, channels))
    bias = np.full((heads, height * width, height * width), -np.inf)
    for i in range(height * width):
        for j in range(height * width):
            (query_y, query_x), (key_y, key_x) = (
                divmod(i, width),
                divmod(j, width),
            )
            # A window of K around a centre that keeps K // 2 from borders.
            centre_y = np.clip(query_y, kernel // 2, height - 1 - kernel // 2)
            centre_x = np.clip(query_x, kernel // 2, width - 1 - kernel // 2)
            if max(abs(key_y - centre_y), abs(key_x - centre_x)) <= 2:
                bias[:, i, j] = params['rpb'][
                    :,
                    key_y - query_y + kernel - 1,
                    key_x - query_x + kernel - 1,
                ]
    qkv = linear(
        x.reshape(-1, channels), params['qkv.weight'], params['qkv.bias']
    )
    q, k, v = (split_heads(own, heads) for own in np.split(qkv, 3, axis=1))
    expected = linear(
        merge_heads(attend(q, k, v, bias)),
        params['proj.weight'],
        params['proj.bias'],
    )
    np.testing.assert_allclose(
        neighborhood_attention(x, params, heads),
        expected.reshape(height, width, channels),
        **CLOSE,
    )


def test_small_maps_are_padded_right_and_below():
    params = random_params(4, 2, 7)
    x = np.random.default_rng(1).standard_normal((3, 8, 4))
    padded = np.zeros((7, 8, 4))
    padded[:3] = x
    np.testing.assert_allclose(
        neighborhood_attention(x, params, 2),
        neighborhood_attention(padded, params, 2)[:3],
        **CLOSE,
    )
