# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch

from mmdat.ops.windows import WindowLayout, join_windows, split_windows

SIZES = [(4, 4), (8, 12), (5, 9), (1, 7), (3, 1), (2, 2)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('shift', [0, 1, 2, 3])
def test_joining_undoes_splitting(size, shift):
    layout = WindowLayout(*size, 4, shift)
    x = torch.randn(2, *size, 3)
    windows = split_windows(x, layout)
    rows, columns = layout.grid()
    assert windows.shape == (rows * columns, 2, 16, 3)
    assert torch.equal(join_windows(windows, layout), x)


@pytest.mark.parametrize('shift', [0, 2])
def test_padding_is_zero(shift):
    layout = WindowLayout(5, 6, 4, shift)
    windows = split_windows(torch.ones(1, 5, 6, 1), layout)
    assert windows.sum() == 30 and windows.numel() == 64


def test_a_window_holds_neighbours():
    x = torch.arange(16.0).view(1, 4, 4, 1)
    plain = split_windows(x, WindowLayout(4, 4, 2, 0))
    assert plain[1].flatten().tolist() == [2, 3, 6, 7]
    rolled = split_windows(x, WindowLayout(4, 4, 2, 1))
    assert rolled[0].flatten().tolist() == [5, 6, 9, 10]
    assert rolled[-1].flatten().tolist() == [15, 12, 3, 0]


def test_parts_cover_all_windows_once():
    for shift in (0, 3):
        layout = WindowLayout(9, 13, 4, shift)
        seen = [i for p in layout.parts() for i in range(12)[p.windows]]
        assert seen == list(range(12))
