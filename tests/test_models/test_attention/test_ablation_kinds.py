# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""P, E, F and Q, which only the papers' ablations use."""

import numpy as np
import pytest
import torch
from agreement import (
    UGLY_SIZES,
    assert_close,
    published,
    random_map,
    randomise,
)
from oracle.full import full_attention
from oracle.pyramid import pyramid_attention
from oracle.qna import qna_attention
from oracle.slide import slide_attention

from mmdat.models.attention import (
    FullAttention,
    PyramidAttention,
    QueryAttention,
    SlideAttention,
)

DIM, HEADS = 24, 3


@pytest.mark.parametrize('size', UGLY_SIZES)
@pytest.mark.parametrize('reduction', [1, 2, 4])
def test_pyramid_equals_oracle(size, reduction):
    attention = randomise(PyramidAttention(DIM, HEADS, reduction))
    x = random_map(*size, DIM)
    # The oracle leaves out what fills no patch; we pad it with zeros.
    margins = [(0, -n % reduction) for n in size]
    wanted = []
    for one in x.numpy():
        padded = np.pad(one, (*margins, (0, 0)))
        out = pyramid_attention(padded, published(attention), HEADS)
        wanted.append(out[: size[0], : size[1]])
    assert_close(attention(x), wanted)


@pytest.mark.parametrize('size', UGLY_SIZES)
def test_slide_equals_oracle(size):
    attention = randomise(SlideAttention(DIM, HEADS))
    parameters = published(attention)
    for part in ('weight', 'bias'):
        own = parameters.pop(f'dep_conv.{part}')
        parameters[f'dep_conv1.{part}'] = own
    parameters['dep_conv.bias'] = np.zeros_like(parameters['dep_conv1.bias'])
    x = random_map(*size, DIM)
    wanted = [slide_attention(one.numpy(), parameters, HEADS) for one in x]
    assert_close(attention(x), wanted)


@pytest.mark.parametrize('size', UGLY_SIZES)
def test_query_equals_oracle(size):
    attention = randomise(QueryAttention(DIM, HEADS))
    parameters = published(attention)
    parameters['q_param'] = parameters['q_param'].reshape(2, DIM)
    x = random_map(*size, DIM)
    wanted = [qna_attention(one.numpy(), parameters, HEADS) for one in x]
    assert_close(attention(x), wanted)


@pytest.mark.parametrize('size', UGLY_SIZES)
def test_full_equals_oracle(size):
    attention = randomise(FullAttention(DIM, HEADS))
    assert not hasattr(attention, 'rpb') and attention.qkv.bias is None
    x = random_map(*size, DIM)
    wanted = [
        full_attention(one.numpy(), published(attention), HEADS) for one in x
    ]
    assert_close(attention(x), wanted)


@pytest.mark.parametrize(
    'attention',
    [
        FullAttention(8, 2),
        PyramidAttention(8, 2, 2),
        SlideAttention(8, 2),
        QueryAttention(8, 2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_gradients_are_exact(attention):
    attention = randomise(attention)
    x = random_map(3, 4, 8, batch=1).requires_grad_()
    parameters = list(attention.parameters())
    assert torch.autograd.gradcheck(
        lambda *_: attention(x), (x, *parameters), fast_mode=True
    )
