# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The oracle's ordinary layers, by hand and against PyTorch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import layers
from oracle.layout import per_image

CLOSE = dict(rtol=0, atol=1e-12)


def test_conv2d_by_hand():
    image = np.arange(6.0).reshape(2, 3, 1)
    weight = np.array([[[[1.0, 10.0]]]])  # (1, 1, 1, 2): left + 10 right
    out = layers.conv2d(image, weight)
    assert out[..., 0].tolist() == [[10, 21], [43, 54]]


@pytest.mark.parametrize('groups', [1, 2, 6])
@pytest.mark.parametrize(
    'kernel,stride,padding',
    [
        ((3, 2), 1, 0),
        ((3, 3), 2, 1),
        ((5, 5), 3, 2),
        ((4, 4), 4, 0),
        ((1, 1), 1, 0),
    ],
)
def test_conv2d_against_torch(groups, kernel, stride, padding):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 6, 9, 7))
    weight = rng.standard_normal((12, 6 // groups) + kernel)
    bias = rng.standard_normal(12)
    ours = per_image(
        layers.conv2d, images, weight, bias, stride, padding, groups
    )
    theirs = F.conv2d(
        torch.from_numpy(images),
        torch.from_numpy(weight),
        torch.from_numpy(bias),
        stride,
        padding,
        1,
        groups,
    )
    np.testing.assert_allclose(ours, theirs.numpy(), **CLOSE)


def test_conv2d_says_when_the_kernel_does_not_fit():
    with pytest.raises(ValueError, match='4x4 kernel does not fit'):
        layers.conv2d(np.zeros((3, 5, 1)), np.zeros((1, 1, 4, 4)))


def test_pointwise_layers_against_torch():
    rng = np.random.default_rng(0)
    x = 3 * rng.standard_normal((5, 4, 6))
    weight, bias = rng.standard_normal((2, 6))
    matrix = rng.standard_normal((3, 6))
    tensor = torch.from_numpy(x)
    np.testing.assert_allclose(
        layers.layer_norm(x, weight, bias),
        F.layer_norm(
            tensor, (6,), torch.from_numpy(weight), torch.from_numpy(bias)
        ),
        **CLOSE,
    )
    np.testing.assert_allclose(layers.gelu(x), F.gelu(tensor), **CLOSE)
    np.testing.assert_allclose(layers.softmax(x), tensor.softmax(-1), **CLOSE)
    np.testing.assert_allclose(
        layers.linear(x, matrix, bias[:3]),
        F.linear(tensor, torch.from_numpy(matrix), torch.from_numpy(bias[:3])),
        **CLOSE,
    )


def test_gelu_is_exact_not_the_tanh_approximation():
    # 0.5 (1 + erf(1 / sqrt(2))), the normal distribution function at 1
    assert abs(layers.gelu(np.ones(1))[0] - 0.8413447460685429) < 1e-15


def test_avg_pool_by_hand():
    image = np.arange(8.0).reshape(2, 4, 1)
    out = layers.avg_pool2d(image, 2)
    assert out[..., 0].tolist() == [[2.5, 4.5]]
    with pytest.raises(ValueError, match='3 does not divide the map 2x4'):
        layers.avg_pool2d(image, 3)


def test_heads_are_runs_of_channels():
    x = np.arange(12.0).reshape(2, 6)
    heads = layers.split_heads(x, 3)
    assert heads[1].tolist() == [[2, 3], [8, 9]]
    assert np.array_equal(layers.merge_heads(heads), x)


def test_attend_by_hand():
    q = np.array([[[np.log(3), 0.0, 0.0, 0.0]]])
    k = np.zeros((1, 2, 4))
    k[0, 0, 0] = 2.0  # score log 3 after the division by sqrt(4)
    v = np.array([[[4.0, 0, 0, 0], [0, 8.0, 0, 0]]])
    np.testing.assert_allclose(
        layers.attend(q, k, v), [[[3.0, 2.0, 0, 0]]], **CLOSE
    )
    np.testing.assert_allclose(
        layers.attend(q, k, v, np.array([-np.inf, 0.0])),
        [[[0, 8.0, 0, 0]]],
        **CLOSE,
    )
