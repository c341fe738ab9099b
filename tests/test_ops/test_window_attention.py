# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch

from mmdat.ops import explain, window_attention
from mmdat.ops.window_attention import window_bias
from mmdat.ops.windows import WindowLayout, split_windows


def inputs(size, window, shift, heads=3, dim=4):
    torch.manual_seed(0)
    layout = WindowLayout(*size, window, shift)
    maps = torch.randn(3, 2, *size, heads * dim).double()
    qkv = [split_windows(x, layout).unflatten(-1, (heads, dim)) for x in maps]
    return *qkv, torch.randn((2 * window - 1) ** 2, heads).double(), layout


@pytest.mark.parametrize(
    ('size', 'window'),
    [((4, 4), 4), ((8, 12), 4), ((3, 9), 3), ((14, 7), 7), ((5, 11), 5)],
)
@pytest.mark.parametrize('shifted', [False, True])
def test_sdpa_equals_reference(size, window, shifted):
    args = inputs(size, window, (window + 1) // 2 if shifted else 0)
    torch.testing.assert_close(
        window_attention(*args, backend='sdpa'),
        window_attention(*args, backend='reference'),
        atol=1e-12,
        rtol=0,
    )


def test_bias_counts_query_minus_key():
    bias = window_bias(torch.arange(9.0)[:, None], 2)[0]
    # Query (0, 0) and key (1, 1) are (-1, -1) apart: the first entry.
    assert bias[0, 3] == 0
    assert bias[3, 0] == 8
    assert bias[1, 2] == (-1 + 1) * 3 + (1 + 1)


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
def test_gradients(backend):
    *tensors, layout = inputs((4, 6), 2, 1, 2, 3)
    leaves = [t.requires_grad_() for t in tensors]

    def run(*args):
        return window_attention(*args, layout, backend=backend)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_explains():
    found = explain(window_attention, *inputs((4, 4), 2, 0))
    assert found == {'sdpa': None, 'reference': None}
