# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Every kind of attention against the oracle, on maps of any size."""

import numpy as np
import pytest
import torch
from agreement import assert_close, published, randomise
from hypothesis import given
from hypothesis import strategies as st
from oracle.deformable import deformable_attention
from oracle.neighborhood import neighborhood_attention
from oracle.pyramid import pyramid_attention
from oracle.qna import qna_attention
from oracle.slide import slide_attention
from oracle.window import shifted_window_attention, window_attention
from versions import needs_torch

from mmdat.models.attention import (
    DeformableAttention,
    NeighborhoodAttention,
    PyramidAttention,
    QueryAttention,
    SlideAttention,
    WindowAttention,
)

pytestmark = [pytest.mark.fuzz, needs_torch('2.4')]
# Our names of the bias kinds, and the oracle's.
BIASES = {
    'table': 'table',
    'depthwise_conv': 'depthwise-conv',
    'log_continuous': 'log-continuous',
    'none': 'none',
}


def compare(draw, make, oracle):
    """On a batch of maps; `oracle` gets a map, parameters and heads."""
    heads = draw(st.integers(1, 3))
    dim = heads * 4 * draw(st.integers(1, 2))
    attention = randomise(make(dim, heads), draw(st.integers(0, 99)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    x = torch.randn(
        *(draw(st.integers(1, 3)), height, width, dim),
        generator=generator,
        dtype=torch.float64,
    )
    wanted = [oracle(one, published(attention), heads) for one in x.numpy()]
    assert_close(attention(x), wanted)


@given(st.data())
def test_deformable(data):
    draw = data.draw
    convention = draw(st.sampled_from(['dat', 'dat_pp']))
    bias = draw(st.sampled_from(sorted(BIASES)))
    names = [None, 'sdpa', 'reference']
    backend = draw(
        st.sampled_from([*names, 'separable'] if bias == 'table' else names)
    )
    map_size = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    kernel = draw(st.sampled_from([3, 5, 7, 9]))
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    reach = draw(st.sampled_from([-1, 0, 2, 7.5]))
    shared = draw(st.booleans())

    def make(dim, heads):
        return DeformableAttention(
            *(dim, heads, 1 if shared else heads, map_size, convention),
            *(kernel, stride, reach),
            position_bias=bias,
            backend=backend,
        )

    def oracle(x, parameters, heads):
        groups = 1 if shared else heads
        return deformable_attention(
            *(x, parameters, heads, groups, stride, convention, reach),
            bias=BIASES[bias],
        )[0]

    compare(draw, make, oracle)


@given(st.data())
def test_neighborhood(data):
    kernel = data.draw(st.sampled_from([1, 3, 5, 7]))
    backend = data.draw(st.sampled_from(['sdpa', 'reference']))
    compare(
        data.draw,
        lambda *args: NeighborhoodAttention(*args, kernel, backend=backend),
        neighborhood_attention,
    )


@given(st.data())
def test_windows(data):
    size = data.draw(st.integers(2, 8))
    shift = data.draw(st.sampled_from([0, (size + 1) // 2]))
    backend = data.draw(st.sampled_from([None, 'sdpa', 'reference']))
    oracle = shifted_window_attention if shift else window_attention
    compare(
        data.draw,
        lambda *args: WindowAttention(*args, size, shift, backend=backend),
        lambda *args: oracle(*args, size),
    )


def pyramid(reduction):
    def oracle(x, parameters, heads):
        # The oracle leaves out what fills no patch; we pad it with zeros.
        height, width = x.shape[:2]
        margins = [(0, -n % reduction) for n in (height, width)]
        padded = np.pad(x, (*margins, (0, 0)))
        out = pyramid_attention(padded, parameters, heads)
        return out[:height, :width]

    return lambda *args: PyramidAttention(*args, reduction), oracle


def slide_oracle(x, parameters, heads):
    parameters = dict(parameters)
    for part in ('weight', 'bias'):
        own = parameters.pop(f'dep_conv.{part}')
        parameters[f'dep_conv1.{part}'] = own
    parameters['dep_conv.bias'] = np.zeros_like(parameters['dep_conv1.bias'])
    return slide_attention(x, parameters, heads)


def query_oracle(x, parameters, heads):
    queries = parameters['q_param'].reshape(2, -1)
    return qna_attention(x, {**parameters, 'q_param': queries}, heads)


@given(st.data())
def test_kinds_of_the_ablations(data):
    make, oracle = data.draw(
        st.sampled_from(
            [
                *(pyramid(reduction) for reduction in (1, 2, 3, 8)),
                (SlideAttention, slide_oracle),
                (QueryAttention, query_oracle),
            ]
        )
    )
    compare(data.draw, make, oracle)
