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
from oracle.neighborhood import neighborhood_attention

from mmdat.models.attention import NeighborhoodAttention

DIM, HEADS = 12, 3


@pytest.mark.parametrize('size', [*UGLY_SIZES, (14, 20), (29, 8)])
@pytest.mark.parametrize('kernel', [1, 3, 7])
@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
def test_equals_oracle(size, kernel, backend):
    attention = randomise(
        NeighborhoodAttention(DIM, HEADS, kernel, backend=backend)
    )
    x = random_map(*size, DIM)
    wanted = [
        neighborhood_attention(one.numpy(), published(attention), HEADS)
        for one in x
    ]
    assert_close(attention(x), wanted)


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
@pytest.mark.parametrize('size', [(5, 8), (2, 4)])
def test_gradients_are_exact(backend, size):
    attention = randomise(NeighborhoodAttention(4, 2, 3, backend=backend))
    x = random_map(*size, 4, batch=1).requires_grad_()
    parameters = list(attention.parameters())
    assert torch.autograd.gradcheck(
        lambda *_: attention(x), (x, *parameters), fast_mode=True
    )
