# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The kinds of attention that no released weights use: P, X, E, Q."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle.block import block
from oracle.layers import layer_norm
from oracle.layout import subset
from oracle.mlp import mlp
from oracle.pyramid import pyramid_attention
from oracle.qna import qna_attention
from oracle.slide import neighbours, slide_attention
from oracle.variants import Variant

CLOSE = dict(rtol=0, atol=1e-12)


def fill(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(shape) for key, shape in shapes.items()}


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


# --- P -----------------------------------------------------------------


def pyramid_params(channels, ratio):
    params = fill(
        {
            'q.weight': (channels, channels, 1, 1),
            'q.bias': (channels,),
            'kv.weight': (2 * channels, channels, 1, 1),
            'kv.bias': (2 * channels,),
            'proj.weight': (channels, channels, 1, 1),
            'proj.bias': (channels,),
        }
    )
    if ratio > 1:
        params.update(
            fill(
                {
                    'proj_ds.0.weight': (channels, channels, ratio, ratio),
                    'proj_ds.0.bias': (channels,),
                    'proj_ds.1.norm.weight': (channels,),
                    'proj_ds.1.norm.bias': (channels,),
                }
            )
        )
    return params


@pytest.mark.parametrize('ratio', [1, 2])
def test_pyramid_against_torch(ratio):
    params = pyramid_params(8, ratio)
    x = np.random.default_rng(1).standard_normal((5, 6, 8))
    own = {key: tensor(value) for key, value in params.items()}
    image = tensor(x.transpose(2, 0, 1))[None]
    small = image
    if ratio > 1:
        small = F.conv2d(
            image, own['proj_ds.0.weight'], own['proj_ds.0.bias'], stride=ratio
        )
        small = F.layer_norm(
            small.permute(0, 2, 3, 1),
            (8,),
            own['proj_ds.1.norm.weight'],
            own['proj_ds.1.norm.bias'],
        ).permute(0, 3, 1, 2)
        assert small.shape[2:] == (2, 3)

    def heads(value):  # (1, C, H, W) -> (1, heads, HW, C / heads)
        return value.flatten(2).unflatten(1, (2, -1)).transpose(2, 3)

    kv = F.conv2d(small, own['kv.weight'], own['kv.bias'])
    out = F.scaled_dot_product_attention(
        heads(F.conv2d(image, own['q.weight'], own['q.bias'])),
        heads(kv[:, :8]),
        heads(kv[:, 8:]),
    )
    out = out.transpose(2, 3).reshape(1, 8, 5, 6)
    out = F.conv2d(out, own['proj.weight'], own['proj.bias'])
    np.testing.assert_allclose(
        pyramid_attention(x, params, 2),
        out[0].permute(1, 2, 0).numpy(),
        **CLOSE,
    )


# --- E -----------------------------------------------------------------


def slide_params(channels, heads):
    own = channels // 4 // heads
    return fill(
        {
            'qkv.weight': (3 * channels // 4, channels),
            'qkv.bias': (3 * channels // 4,),
            'proj.weight': (channels, channels // 4),
            'proj.bias': (channels,),
            'dep_conv.bias': (9 * own,),
            'dep_conv1.weight': (9 * own, 1, 3, 3),
            'dep_conv1.bias': (9 * own,),
            'relative_position_bias_table': (1, heads, 1, 9, 1, 1),
        }
    )


def test_slide_views_are_two_depthwise_convolutions():
    params = slide_params(24, 2)
    image = np.random.default_rng(1).standard_normal((4, 5, 3))
    shift = torch.eye(9, dtype=torch.float64).reshape(9, 1, 3, 3)
    weight = shift.repeat(3, 1, 1, 1) + tensor(params['dep_conv1.weight'])
    bias = tensor(params['dep_conv.bias'] + params['dep_conv1.bias'])
    theirs = F.conv2d(
        tensor(image.transpose(2, 0, 1))[None],
        weight,
        bias,
        padding=1,
        groups=3,
    )
    theirs = theirs.reshape(3, 9, 4, 5).permute(2, 3, 0, 1)
    np.testing.assert_allclose(
        neighbours(image, params, 3), theirs.numpy(), **CLOSE
    )


def test_slide_without_learnt_parts_is_the_mean_of_nine():
    params = slide_params(4, 1)
    for key in (
        'dep_conv.bias',
        'dep_conv1.weight',
        'dep_conv1.bias',
        'proj.bias',
        'qkv.bias',
        'qkv.weight',
    ):
        params[key][:] = 0
    params['qkv.weight'][2, 0] = 1  # v is the first channel, q and k zero
    params['proj.weight'][:] = 1
    x = np.zeros((3, 4, 4))
    x[0, 0, 0], x[1, 2, 0] = 9, 18
    out = slide_attention(x, params, 1)
    assert np.array_equal(out[..., 0], out[..., 3])
    np.testing.assert_allclose(
        out[..., 0], [[1, 3, 2, 2], [1, 3, 2, 2], [0, 2, 2, 2]], **CLOSE
    )


def test_slide_adds_its_bias_to_every_channel_of_the_key():
    # With k = 0, the score of a neighbour is its bias times the sum of q,
    # over the root of C / heads = 16; head 1 keeps q, k, v to itself.
    params = slide_params(32, 2)
    for key in ('dep_conv.bias', 'dep_conv1.weight', 'dep_conv1.bias'):
        params[key][:] = 0
    params['qkv.weight'][:] = 0
    params['qkv.bias'][:] = 0
    params['qkv.bias'][12:16] = (1, 2, 3, 4)  # q of head 1
    params['qkv.weight'][20, 0] = 1  # v of head 1, its first channel
    params['proj.weight'][:], params['proj.bias'][:] = np.eye(32, 8), 0
    x = np.random.default_rng(1).standard_normal((3, 3, 32))
    out = slide_attention(x, params, 2)[1, 1]
    bias = params['relative_position_bias_table'].reshape(2, 9)[1]
    weights = np.exp(bias * 10 / 4)
    expected = (weights * x[..., 0].reshape(9)).sum() / weights.sum()
    np.testing.assert_allclose(
        out[:8], [0, 0, 0, 0, expected, 0, 0, 0], **CLOSE
    )


# --- Q -----------------------------------------------------------------


def qna_params(channels, heads, queries, kernel):
    return fill(
        {
            'q_param': (queries, channels),
            'proj_k.weight': (channels, channels),
            'proj_v.weight': (channels, channels),
            'proj_out.weight': (channels, channels, 1, 1),
            'attn_scale': (1, 1, kernel**2, queries * heads),
            'rpb_table': (kernel**2, queries * heads),
        }
    )


@pytest.mark.parametrize('kernel', [1, 3])
def test_qna_is_a_softmax_over_the_window(kernel):
    channels, heads, queries = 8, 4, 2
    params = qna_params(channels, heads, queries, kernel)
    x = np.random.default_rng(1).standard_normal((4, 5, channels))
    own = {key: tensor(value) for key, value in params.items()}
    k = (tensor(x) @ own['proj_k.weight'].T).reshape(20, heads, 2)
    v = tensor(x) @ own['proj_v.weight'].T
    q = own['q_param'].reshape(queries, heads, 2)
    scores = torch.einsum('qmd,nmd->qmn', q, k) / 2**0.5

    def windows(maps, outside):  # (N, 20) -> (N, K*K, 20)
        maps = F.pad(
            maps.reshape(-1, 1, 4, 5), [kernel // 2] * 4, value=outside
        )
        return F.unfold(maps, kernel)

    scores = windows(scores.reshape(-1, 20), -torch.inf)
    weights = (scores + own['rpb_table'].T[..., None]).softmax(1)
    weights = weights * own['attn_scale'][0, 0].T[..., None]
    weights = weights.reshape(queries, heads, -1, 20)
    values = windows(v.permute(2, 0, 1), 0.0).reshape(heads, 2, -1, 20)
    out = torch.einsum('qmtn,mdtn->nmd', weights, values).reshape(20, -1)
    out = out @ own['proj_out.weight'][..., 0, 0].T
    np.testing.assert_allclose(
        qna_attention(x, params, heads),
        out.reshape(4, 5, channels).numpy(),
        **CLOSE,
    )


@pytest.mark.parametrize(
    'activation,left,right',
    [
        ('exp', np.exp(0 + 0.5), np.exp(2 - 1)),
        (
            'sigmoid',
            0.5 / (1 + np.exp(-0.5)),
            1 / (1 + np.exp(-2)) / (1 + np.exp(1)),
        ),
        ('linear', 0 * 0.5, 2 * -1.0),
    ],
)
def test_qna_activations(activation, left, right):
    # Two places of value 0 and 1, a query of 2, a window of 3 x 3; the query
    # at the left has its own place at 4 and the other one at 5.
    params = qna_params(1, 1, 1, 3)
    params['q_param'][:] = 2
    params['rpb_table'][4], params['rpb_table'][5] = 0.5, -1
    params['attn_scale'][:] = 7
    for key in ('proj_k.weight', 'proj_v.weight', 'proj_out.weight'):
        params[key][:] = 1
    x = np.array([[[0.0], [1.0]]])
    out = qna_attention(x, params, 1, activation)
    assert out[0, 0, 0] == pytest.approx(7 * right / (left + right))


# --- X and blocks ------------------------------------------------------


def block_params(kind_params, prefix='attns.0.'):
    params = {prefix + key: value for key, value in kind_params.items()}
    params.update(
        fill(
            {
                'layer_norms.0.norm.weight': (8,),
                'layer_norms.0.norm.bias': (8,),
                'layer_norms.1.norm.weight': (8,),
                'layer_norms.1.norm.bias': (8,),
                'mlps.0.chunk.linear1.weight': (32, 8),
                'mlps.0.chunk.linear1.bias': (32,),
                'mlps.0.chunk.linear2.weight': (8, 32),
                'mlps.0.chunk.linear2.bias': (8,),
            },
            seed=2,
        )
    )
    return params


def variant(kind):
    return Variant('dat', (kind,), (2,), (1,), (1,), 2, qna_heads=(4,))


def test_convolution_block():
    params = block_params(fill({'weight': (8, 1, 7, 7), 'bias': (8,)}))
    params.update(
        fill(
            {
                'ln_cnvnxt.0.norm.weight': (8,),
                'ln_cnvnxt.0.norm.bias': (8,),
            }
        )
    )
    x = np.random.default_rng(1).standard_normal((5, 9, 8))
    own = {key: tensor(value) for key, value in params.items()}
    hidden = F.conv2d(
        tensor(x.transpose(2, 0, 1))[None],
        own['attns.0.weight'],
        own['attns.0.bias'],
        padding=3,
        groups=8,
    )[0].permute(1, 2, 0)
    hidden = F.layer_norm(
        hidden,
        (8,),
        own['ln_cnvnxt.0.norm.weight'],
        own['ln_cnvnxt.0.norm.bias'],
    )
    hidden = F.gelu(
        F.linear(
            hidden,
            own['mlps.0.chunk.linear1.weight'],
            own['mlps.0.chunk.linear1.bias'],
        )
    )
    out = tensor(x) + F.linear(
        hidden,
        own['mlps.0.chunk.linear2.weight'],
        own['mlps.0.chunk.linear2.bias'],
    )
    ours, points_yx = block(x, params, variant('X'), 0, 0)
    assert points_yx is None
    np.testing.assert_allclose(ours, out.numpy(), **CLOSE)


@pytest.mark.parametrize(
    'kind,own',
    [
        ('P', pyramid_params(8, 2)),
        ('E', slide_params(8, 2)),
        ('Q', qna_params(8, 4, 2, 3)),
    ],
)
def test_blocks_of_every_kind_and_layer_scale(kind, own):
    params = block_params(own)
    x = np.random.default_rng(1).standard_normal((4, 6, 8))
    out, _ = block(x, params, variant(kind), 0, 0)
    assert out.shape == x.shape and not np.allclose(out, x)
    # Layer scales multiply the branches, attention first.
    scaled = dict(params)
    scaled['layer_scales.0.weight'] = np.zeros(8)
    scaled['layer_scales.1.weight'] = np.full(8, 2.0)
    normed = layer_norm(
        x,
        params['layer_norms.1.norm.weight'],
        params['layer_norms.1.norm.bias'],
    )
    feed_forward = mlp(normed, subset(params, 'mlps.0.'))
    np.testing.assert_allclose(
        block(x, scaled, variant(kind), 0, 0)[0], x + 2 * feed_forward, **CLOSE
    )
    scaled['layer_scales.0.weight'] = np.ones(8)
    scaled['layer_scales.1.weight'] = np.ones(8)
    np.testing.assert_allclose(
        block(x, scaled, variant(kind), 0, 0)[0], out, **CLOSE
    )


def test_unknown_kind():
    params = block_params({})
    with pytest.raises(ValueError, match="unknown kind of attention 'Z'"):
        block(np.zeros((4, 4, 8)), params, variant('Z'), 0, 0)
