# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is exported computes what the regions and the plain formulas do."""

import pytest
import torch

from mmdat.ops import gathering, reference
from mmdat.ops.sdpa import any_size
from mmdat.ops.window_attention import window_bias
from mmdat.ops.windows import WindowLayout, join_windows, split_windows

CLOSE = dict(rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('size', 'height', 'width'),
    [(7, 7, 7), (7, 8, 13), (4, 3, 11), (2, 5, 4), (5, 1, 1)],
)
@pytest.mark.parametrize('shifted', [False, True])
def test_windows_that_are_gathered(size, height, width, shifted):
    layout = WindowLayout(height, width, size, -(-size // 2) * shifted)
    x = torch.randn(2, height, width, 24).double()
    bias = window_bias(torch.randn((2 * size - 1) ** 2, 2).double(), size)
    windows = split_windows(x, layout)
    gathered = gathering.split_windows(x, *layout)
    out, wanted = (
        attend(*qkv.unbind(3), bias, layout, 0.5, 0.0).flatten(-2)
        for attend, qkv in (
            (any_size.window_attention, gathered.unflatten(-1, (3, 2, 4))),
            (reference.window_attention, windows.unflatten(-1, (3, 2, 4))),
        )
    )
    torch.testing.assert_close(
        gathering.join_windows(out, *layout),
        join_windows(wanted, layout),
        **CLOSE,
    )
    assert (gathering.join_windows(gathered, *layout) == x).all()


@pytest.mark.parametrize(
    ('size', 'height', 'width'),
    [(7, 7, 7), (7, 8, 13), (7, 14, 20), (3, 3, 4), (1, 2, 3), (5, 25, 9)],
)
def test_neighborhoods_that_are_gathered(size, height, width):
    q, k, v = torch.randn(3, 2, height, width, 2, 4).double()
    table = torch.randn(2, 2 * size - 1, 2 * size - 1).double()
    args = q, k, v, table, size, 0.5, 0.0
    torch.testing.assert_close(
        any_size.neighborhood_attention(*args),
        reference.neighborhood_attention(*args),
        **CLOSE,
    )
