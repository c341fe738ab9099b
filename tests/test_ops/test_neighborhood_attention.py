# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch

from mmdat.ops import neighborhood_attention

SIZES = [(7, 7), (8, 13), (14, 7), (15, 29), (23, 9)]


def inputs(size, kernel, heads=3, dim=4):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, *size, heads, dim).double()
    side = 2 * kernel - 1
    return q, k, v, torch.randn(heads, side, side).double()


@pytest.mark.parametrize('kernel', [1, 3, 7])
@pytest.mark.parametrize('size', SIZES)
def test_tiled_equals_reference(size, kernel):
    args = inputs(size, kernel)
    torch.testing.assert_close(
        neighborhood_attention(*args, kernel, backend='sdpa'),
        neighborhood_attention(*args, kernel, backend='reference'),
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
def test_gradients(backend):
    leaves = [t.requires_grad_() for t in inputs((5, 8), 3, 2, 3)]

    def run(*args):
        return neighborhood_attention(*args, 3, backend=backend)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
def test_a_query_sees_its_neighbourhood_only(backend):
    q, k, v, table = inputs((9, 10), 3)
    before = neighborhood_attention(q, k, v, table, 3, backend=backend)
    v[:, 4, 5] += 100
    after = neighborhood_attention(q, k, v, table, 3, backend=backend)
    changed = (before != after).any(-1).any(-1)[0]
    assert changed.nonzero().tolist() == [
        [y, x] for y in (3, 4, 5) for x in (4, 5, 6)
    ]


def test_a_small_map_is_refused():
    with pytest.raises(ValueError, match=r'got \(5, 9\) for kernel_size=7'):
        neighborhood_attention(*inputs((5, 9), 7), 7)
