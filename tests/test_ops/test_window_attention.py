# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch

from mmdat.ops import window_attention
from mmdat.ops.window_attention import window_bias


def inputs(size, window, heads=3, dim=4):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, *size, heads, dim).double()
    return q, k, v, torch.randn((2 * window - 1) ** 2, heads).double()


@pytest.mark.parametrize(
    ('size', 'window'),
    [((4, 4), 4), ((8, 12), 4), ((3, 9), 3), ((14, 7), 7), ((5, 10), 5)],
)
@pytest.mark.parametrize('shifted', [False, True])
def test_tiled_equals_reference(size, window, shifted):
    args = inputs(size, window)
    shift = (window + 1) // 2 if shifted else 0
    torch.testing.assert_close(
        window_attention(*args, window, shift, backend='tiled'),
        window_attention(*args, window, shift, backend='reference'),
        atol=1e-12,
        rtol=0,
    )


def test_bias_counts_query_minus_key():
    bias = window_bias(torch.arange(9.0)[:, None], 2)[0]
    # Query (0, 0) and key (1, 1) are (-1, -1) apart: the first entry.
    assert bias[0, 3] == 0
    assert bias[3, 0] == 8
    assert bias[1, 2] == (-1 + 1) * 3 + (1 + 1)


@pytest.mark.parametrize('backend', ['tiled', 'reference'])
def test_gradients(backend):
    leaves = [t.requires_grad_() for t in inputs((4, 6), 2, 2, 3)]

    def run(*args):
        return window_attention(*args, 2, 1, backend=backend)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_sides_must_be_whole_windows():
    with pytest.raises(ValueError, match=r'got \(4, 9\) for window_size=4'):
        window_attention(*inputs((4, 9), 4), 4)
