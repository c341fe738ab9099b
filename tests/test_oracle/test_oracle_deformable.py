# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention, by hand on small maps."""

import numpy as np
import pytest
from oracle.coordinates import reference_yx
from oracle.deformable import deformable_attention, offset_network
from oracle.layers import depthwise_conv2d, gelu, layer_norm
from oracle.layout import subset
from oracle.position_bias import log_continuous_bias, table_bias

CLOSE = dict(rtol=0, atol=1e-12)


def random_params(channels, groups, kernel, seed=0):
    rng = np.random.default_rng(seed)
    own = channels // groups
    shapes = {
        'conv_offset.0.weight': (own, 1, kernel, kernel),
        'conv_offset.0.bias': (own,),
        'conv_offset.1.norm.weight': (own,),
        'conv_offset.1.norm.bias': (own,),
        'conv_offset.3.weight': (2, own, 1, 1),
    }
    for name in ('q', 'k', 'v', 'out'):
        shapes[f'proj_{name}.weight'] = (channels, channels, 1, 1)
        shapes[f'proj_{name}.bias'] = (channels,)
    return {key: rng.standard_normal(own) for key, own in shapes.items()}


def transparent_params(channels, groups=1, kernel=3):
    """No offsets, no scores, values and output passed through."""
    params = random_params(channels, groups, kernel)
    params['conv_offset.3.weight'][:] = 0
    for name in ('q', 'k', 'v', 'out'):
        params[f'proj_{name}.weight'] = np.eye(channels)[..., None, None]
        params[f'proj_{name}.bias'][:] = 0
    params['proj_q.weight'][:] = 0
    return params


def ramps(height, width):
    """A map (H, W, 2) that holds its own rows and columns."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns], axis=-1).astype(float)


def test_zero_offsets_on_a_2x4_map():
    # DAT's references lie (i + 0.5) / n of the way from the first to the
    # last pixel: rows 0.25, 0.75; columns 0.375, 1.125, 1.875, 2.625. All
    # keys weigh the same: the mean.
    out, points_yx = deformable_attention(
        ramps(2, 4), transparent_params(2), 1, 1, 1, 'dat', 2, bias='none'
    )
    assert np.array_equal(points_yx[0], reference_yx(2, 4, 'dat'))
    np.testing.assert_allclose(out[..., 0], 0.5, **CLOSE)
    np.testing.assert_allclose(out[..., 1], 1.5, **CLOSE)


def test_a_peaked_table_makes_every_query_see_its_own_key():
    params = transparent_params(2)
    params['rpe_table'] = np.zeros((1, 3, 7))
    params['rpe_table'][0, 1, 3] = 1e5
    out, _ = deformable_attention(ramps(2, 4), params, 1, 1, 1, 'dat', 2)
    np.testing.assert_allclose(
        out[..., 0], np.tile([[0.25], [0.75]], 4), **CLOSE
    )
    np.testing.assert_allclose(
        out[..., 1], np.tile([0.375, 1.125, 1.875, 2.625], (2, 1)), **CLOSE
    )


def test_the_table_is_read_at_query_minus_key():
    # It grows with dy and falls with dx: keys above and to the right win.
    params = transparent_params(2)
    down, right = np.mgrid[-1:2, -3:4]
    params['rpe_table'] = 1e5 * (down - right)[None].astype(float)
    out, _ = deformable_attention(ramps(2, 4), params, 1, 1, 1, 'dat', 2)
    np.testing.assert_allclose(out[..., 0], 0.25, **CLOSE)
    np.testing.assert_allclose(out[..., 1], 2.625, **CLOSE)


def test_table_bias_by_hand():
    # One query at the centre, one key; halved displacement (0.25, -0.5).
    # On a 3x5 table: row 1.25, column 1.
    table = np.arange(15.0).reshape(1, 3, 5)
    bias = table_bias(table, np.zeros((1, 2)), np.array([[[-0.5, 1.0]]]))
    np.testing.assert_allclose(bias, [[[1.25 * 5 + 1]]], **CLOSE)
    # A displacement over 2 leaves the table: zeros there.
    bias = table_bias(table + 1, np.ones((1, 2)), np.array([[[-3.5, 0.0]]]))
    assert bias[0, 0, 0] == 0


def test_groups_have_their_own_points_channels_and_tables():
    rng = np.random.default_rng(3)
    height, width, groups, heads, dim = 4, 6, 2, 4, 8
    params = random_params(dim, groups, 5)
    params['rpe_table'] = rng.standard_normal((heads, 7, 11))
    x = rng.standard_normal((height, width, dim))
    for family, range_factor, stride in (
        ('dat', 2, 1),
        ('dat_pp', -1, 2),
        ('dat_pp', 2, 2),
    ):
        out, points_yx = deformable_attention(
            x, params, heads, groups, stride, family, range_factor
        )
        assert out.shape == x.shape
        assert points_yx.shape == (
            groups,
            height // stride,
            width // stride,
            2,
        )
        assert not np.allclose(points_yx[0], points_yx[1])
        # Changing the second group's queries moves only its own points.
        changed = dict(params, **{'proj_q.bias': params['proj_q.bias'].copy()})
        changed['proj_q.bias'][dim // 2 :] += rng.standard_normal(dim // 2)
        _, moved = deformable_attention(
            x, changed, heads, groups, stride, family, range_factor
        )
        assert np.array_equal(moved[0], points_yx[0])
        assert not np.allclose(moved[1], points_yx[1])
    # With scores and the other values silent, a head sees its own table.
    params['proj_q.weight'][:] = 0
    params['proj_q.bias'][:] = 0
    params['proj_out.weight'] = np.eye(dim)[..., None, None]
    params['proj_out.bias'][:] = 0
    before, _ = deformable_attention(x, params, heads, groups, 1, 'dat', 2)
    params['rpe_table'] = params['rpe_table'].copy()
    params['rpe_table'][2] += rng.standard_normal((7, 11))
    after, _ = deformable_attention(x, params, heads, groups, 1, 'dat', 2)
    changed = np.abs(after - before).max(axis=(0, 1)) > 0
    assert changed.tolist() == [False] * 4 + [True] * 2 + [False] * 2


def test_offset_network_one_key_by_hand():
    rng = np.random.default_rng(5)
    params = subset(random_params(3, 1, 3), 'conv_offset.')
    q = rng.standard_normal((5, 7, 3))
    offset = offset_network(q, params, stride=2)
    assert offset.shape == (3, 4, 2)
    # The key in row 1, column 2 looks at rows 1..3 and columns 3..5.
    seen = q[1:4, 3:6]
    hidden = (seen * params['0.weight'][:, 0].transpose(1, 2, 0)).sum((0, 1))
    hidden = gelu(
        layer_norm(
            hidden + params['0.bias'],
            params['1.norm.weight'],
            params['1.norm.bias'],
        )
    )
    np.testing.assert_allclose(
        offset[1, 2], params['3.weight'][..., 0, 0] @ hidden, **CLOSE
    )


def test_a_kernel_equal_to_the_stride_is_not_padded():
    params = subset(random_params(2, 1, 3), 'conv_offset.')
    q = np.random.default_rng(0).standard_normal((7, 9, 2))
    assert offset_network(q, params, stride=3).shape == (2, 3, 2)


def test_without_offsets_keys_are_averages():
    out, points_yx = deformable_attention(
        ramps(4, 6),
        transparent_params(2),
        1,
        1,
        2,
        'dat_pp',
        -1,
        offsets=False,
        bias='none',
    )
    assert points_yx.shape == (1, 2, 3, 2)
    np.testing.assert_allclose(out[..., 0], 1.5, **CLOSE)
    np.testing.assert_allclose(out[..., 1], 2.5, **CLOSE)
    # A score for the row picks the lower averages, rows 2 and 3.
    params = transparent_params(2)
    params['proj_q.bias'][0] = 1e4
    out, _ = deformable_attention(
        ramps(4, 6), params, 1, 1, 2, 'dat_pp', -1, offsets=False, bias='none'
    )
    np.testing.assert_allclose(out[..., 0], 2.5, **CLOSE)


def test_a_fixed_bias_is_added_to_the_scores():
    params = transparent_params(2)
    choice = np.random.default_rng(0).integers(0, 8, size=8)
    params['rpe_table'] = np.zeros((1, 8, 8))
    params['rpe_table'][0, np.arange(8), choice] = 1e4
    out, _ = deformable_attention(
        ramps(2, 4), params, 1, 1, 1, 'dat', 2, bias='fixed'
    )
    np.testing.assert_allclose(
        out[..., 0].reshape(-1), 0.25 + 0.5 * (choice // 4), **CLOSE
    )
    np.testing.assert_allclose(
        out[..., 1].reshape(-1), 0.375 + 0.75 * (choice % 4), **CLOSE
    )
    with pytest.raises(ValueError, match='one entry per head'):
        deformable_attention(
            ramps(2, 3), params, 1, 1, 1, 'dat', 2, bias='fixed'
        )


def test_the_convolutional_bias_is_added_to_the_output():
    rng = np.random.default_rng(0)
    params = transparent_params(2)
    params['proj_q.bias'][:] = (1.0, -2.0)
    params['rpe_table.weight'] = rng.standard_normal((2, 1, 3, 3))
    params['rpe_table.bias'] = rng.standard_normal(2)
    x = ramps(3, 4)
    args = (1, 1, 1, 'dat', 2)
    plain, _ = deformable_attention(x, params, *args, bias='none')
    out, _ = deformable_attention(x, params, *args, bias='depthwise-conv')
    q = np.broadcast_to(params['proj_q.bias'], x.shape)
    np.testing.assert_allclose(
        out - plain,
        depthwise_conv2d(
            q, params['rpe_table.weight'], params['rpe_table.bias']
        ),
        **CLOSE,
    )


def test_log_continuous_bias_by_hand():
    params = {
        '0.weight': np.zeros((32, 2)),
        '0.bias': np.zeros(32),
        '2.weight': np.zeros((2, 32)),
    }
    params['0.weight'][0, 0] = params['0.weight'][1, 0] = 1  # dy
    params['0.weight'][1, 0] = -1  # -dy
    params['2.weight'][0, 0] = 3  # head 0 likes keys above
    params['2.weight'][1, 1] = 5  # head 1 likes keys below
    points = np.array([[[-1.75, 9.0]], [[0.25, -9.0]]])  # two groups, a key
    bias = log_continuous_bias(params, np.zeros((1, 2)), points)
    # dy = 1.75: log2(1 + 7) / log2(8) = 1; dy = -0.25: -log2(2) / 3
    np.testing.assert_allclose(bias[:, 0, 0], [3, 0, 0, 5 / 3], **CLOSE)


def test_log_continuous_bias_within_the_block():
    params = transparent_params(2)
    params['rpe_table.0.weight'] = np.zeros((32, 2))
    params['rpe_table.0.weight'][0, 0] = 1
    params['rpe_table.0.bias'] = np.ones(32)
    params['rpe_table.2.weight'] = np.full((1, 32), 0.0)
    params['rpe_table.2.weight'][0, 0] = 1e5
    out, _ = deformable_attention(
        ramps(3, 5), params, 1, 1, 1, 'dat', 2, bias='log-continuous'
    )
    np.testing.assert_allclose(out[..., 0], 1 / 3, **CLOSE)  # topmost keys
    np.testing.assert_allclose(out[..., 1], 2, **CLOSE)


@pytest.mark.parametrize(
    'family,range_factor', [('dat', 2), ('dat_pp', -1), ('dat_pp', 2)]
)
@pytest.mark.parametrize('height,width', [(1, 1), (1, 5), (6, 1)])
def test_thin_maps_stay_finite(height, width, family, range_factor):
    rng = np.random.default_rng(0)
    params = random_params(4, 2, 5)
    params['rpe_table'] = rng.standard_normal((2, 13, 13))
    x = rng.standard_normal((height, width, 4))
    for stride in (1, 2, 4):
        out, points_yx = deformable_attention(
            x, params, 2, 2, stride, family, range_factor
        )
        assert out.shape == x.shape
        assert np.isfinite(out).all() and np.isfinite(points_yx).all()


def test_unknown_bias():
    with pytest.raises(ValueError, match="not 'tables'"):
        deformable_attention(
            ramps(2, 2),
            transparent_params(2),
            1,
            1,
            1,
            'dat',
            2,
            bias='tables',
        )
