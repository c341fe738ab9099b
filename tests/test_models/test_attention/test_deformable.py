# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
from agreement import (
    UGLY_SIZES,
    assert_close,
    published,
    random_map,
    randomise,
)
from oracle.deformable import deformable_attention
from versions import needs_torch

from mmdat.models.attention import DeformableAttention

# Our names of the bias kinds, and the oracle's.
BIASES = {
    'table': 'table',
    'fixed': 'fixed',
    'depthwise_conv': 'depthwise-conv',
    'log_continuous': 'log-continuous',
    'none': 'none',
}
# Asymmetric on purpose: heads, groups and sides all differ.
DIM, HEADS, GROUPS = 24, 6, 2
FAMILIES = ('dat', 'dat_pp')


def module(convention='dat', map_size=(9, 7), kernel=5, **kwargs):
    return randomise(
        DeformableAttention(
            DIM, HEADS, GROUPS, map_size, convention, kernel, **kwargs
        )
    )


def oracle(attention, x, stride=1, offset_range=-1, **kwargs):
    parameters = published(attention)
    outs, points = zip(
        *(
            deformable_attention(
                one.numpy(),
                parameters,
                HEADS,
                GROUPS,
                stride,
                attention.convention,
                offset_range,
                **kwargs,
            )
            for one in x
        ),
        strict=True,
    )
    return outs, points


@pytest.mark.parametrize('size', UGLY_SIZES)
@pytest.mark.parametrize('stride', [1, 2, 4])
@pytest.mark.parametrize('convention', FAMILIES)
@pytest.mark.parametrize('offset_range', [-1, 0, 2.5])
def test_equals_oracle(size, stride, convention, offset_range):
    x = random_map(*size, DIM)
    attention = module(convention, stride=stride, offset_range=offset_range)
    outs, points = oracle(attention, x, stride, offset_range)
    assert_close(attention.points_yx(attention.proj_q(x)), points)
    assert_close(attention(x), outs)


def test_a_kernel_that_tiles_the_map_equals_oracle():
    x = random_map(10, 15, DIM)
    attention = module(kernel=5, stride=5)
    assert_close(attention(x), oracle(attention, x, 5)[0])


@pytest.mark.parametrize('size', [(4, 11), (1, 1)])
def test_a_kernel_that_tiles_takes_any_map(size):
    attention = module(kernel=5, stride=5)
    x = random_map(*size, DIM)
    assert attention.points_yx(x).shape[2:4] == (1, -(-size[1] // 5))
    assert attention(x).isfinite().all()


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
@pytest.mark.parametrize('bias', BIASES)
@pytest.mark.parametrize('convention', FAMILIES)
def test_biases_equal_oracle(bias, convention, backend):
    x = random_map(9, 7, DIM)
    attention = module(
        convention, stride=2, position_bias=bias, backend=backend
    )
    outs, _ = oracle(attention, x, 2, bias=BIASES[bias])
    assert_close(attention(x), outs)


@pytest.mark.parametrize('bias', BIASES)
def test_without_offsets_equals_oracle(bias):
    x = random_map(8, 6, DIM)
    attention = module(
        map_size=(8, 6), stride=2, position_bias=bias, use_offsets=False
    )
    assert attention.conv_offset is None
    outs, points = oracle(attention, x, 2, offsets=False, bias=BIASES[bias])
    assert_close(attention.points_yx(x), points)
    assert_close(attention(x), outs)


@pytest.mark.parametrize('size', [(9, 6), (1, 5)])
def test_pooling_covers_the_rest_of_an_odd_map(size):
    x = random_map(*size, DIM)
    attention = module(stride=2, use_offsets=False)
    pooled = attention._pool(x)
    rest = x[:, -1 if size[0] % 2 else -2 :, -1 if size[1] % 2 else -2 :]
    torch.testing.assert_close(pooled[:, -1, -1], rest.mean((1, 2)))
    assert attention(x).isfinite().all()


def test_fixed_bias_stretches_to_other_maps():
    """What is linear in the positions stays linear."""

    def ramp(height, width, hk, wk):
        axes = [torch.linspace(0, 1, n).double() for n in (height, width, hk)]
        y, x, ky = torch.meshgrid(*axes, indexing='ij')
        scores = y + 2 * x + 4 * ky
        scores = scores[..., None].expand(-1, -1, -1, wk)
        return scores.reshape(1, height * width, hk * wk).repeat(HEADS, 1, 1)

    attention = module(map_size=(6, 4), stride=2, position_bias='fixed')
    attention.rpe_table.data = ramp(6, 4, 3, 2)
    bias = attention._bias((9, 11), torch.zeros(1, GROUPS, 5, 6, 2))
    torch.testing.assert_close(bias.scores.data, ramp(9, 11, 5, 6))
    assert attention(random_map(9, 11, DIM)).isfinite().all()


@pytest.mark.parametrize('bias', [b for b in BIASES if b != 'fixed'])
def test_gradients_are_exact(bias):
    attention = module(
        'dat_pp', (3, 4), 3, stride=2, offset_range=2, position_bias=bias
    )
    x = random_map(3, 4, DIM, batch=1).requires_grad_()
    parameters = list(attention.parameters())
    assert torch.autograd.gradcheck(
        lambda *_: attention(x), (x, *parameters), fast_mode=True
    )


# PyTorch 2.1 has no autocast to float16 on a CPU.
@pytest.mark.parametrize(
    'dtype',
    [torch.bfloat16, pytest.param(torch.float16, marks=needs_torch('2.4'))],
)
def test_points_stay_float32_under_autocast(dtype):
    attention = module('dat_pp', (40, 40)).float()
    x = random_map(40, 40, DIM).float()
    q = attention.proj_q(x).to(dtype)
    wanted = attention.points_yx(q.float())
    with torch.autocast('cpu', dtype=dtype):
        points_yx = attention.points_yx(q)
        out = attention(x)
    assert points_yx.dtype == torch.float32
    # Not rounded on the way: one step of bfloat16 near 1 is 4e-3.
    torch.testing.assert_close(points_yx, wanted, atol=1e-6, rtol=0)
    assert out.dtype == dtype


def test_low_precision_error_is_that_of_the_inputs():
    """bf16 output is at most twice as far off as the plain computation's."""
    attention = module('dat_pp', (20, 30), stride=2).float()
    x = random_map(20, 30, DIM).float()
    exact = attention(x)
    errors = {}
    for backend in ('reference', None):
        attention.backend = backend
        with torch.autocast('cpu', dtype=torch.bfloat16):
            errors[backend] = (attention(x).float() - exact).abs().max()
    assert errors[None] <= 2 * errors['reference']
