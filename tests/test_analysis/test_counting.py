# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Counts against the formulas written out, and against running for real."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdat import DAT
from mmdat.analysis.breakdown import add_up, break_down
from mmdat.analysis.counting import count, total
from mmdat.models.attention.deformable import DeformableAttention
from mmdat.models.attention.neighborhood import NeighborhoodAttention
from mmdat.models.attention.window import WindowAttention


def backends(op):
    """Names of all the backends of an op, and none."""
    return [None, *(b.name for b in import_module(op).BACKENDS)]


class Alone(nn.Module):
    """An attention where a backbone would have it."""

    def __init__(self, attn):
        super().__init__()
        self.backbone = DAT(
            dict(embed_dims=[8] * 4, depths=[1] * 4, num_heads=[1] * 4)
        )
        self.backbone.attn = attn

    def forward(self, x):
        return self.backbone.attn(x)


def attention_terms(attn, dim, height, width):
    """Multiply-adds of one attention by term."""
    model = Alone(attn)
    counts = count(model, (1, height, width, dim))
    rows = break_down(model, counts)
    assert total(counts) == sum(row.multiply_adds for row in rows)
    return add_up(rows, 'term')


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('groups', [1, 3])
@pytest.mark.parametrize('backend', backends('mmdat.ops.deformable_attention'))
def test_deformable_attention(stride, groups, backend):
    dim, heads, kernel, height, width = 96, 3, 5, 10, 14
    attn = DeformableAttention(
        dim,
        heads,
        groups,
        (14, 14),
        'dat_pp',
        kernel,
        stride,
        backend=backend,
    )
    queries = height * width
    keys = (height // stride) * (width // stride)
    got = attention_terms(attn, dim, height, width)
    assert got['q k^T'] == got['weights v'] == queries * keys * dim
    # q and the output for each position, k and v for each key
    assert got['projections'] == 2 * queries * dim**2 + 2 * keys * dim**2
    # for each key: a depthwise convolution, then two numbers per group
    assert got['offsets'] == keys * dim * kernel**2 + 2 * keys * dim
    # a bilinear read is four multiply-adds
    assert got['sampling of x'] == 4 * keys * dim
    assert got['position bias'] == 4 * queries * keys * heads


@pytest.mark.parametrize(
    ('kind', 'number'),
    [
        ('none', 0),
        ('fixed', 0),
        # a 3x3 kernel on each channel of each query
        ('depthwise_conv', 48 * 64 * 9),
        # for each pair two layers, 2 -> 32 -> heads
        ('log_continuous', 48 * 48 * (2 * 32 + 32 * 2)),
    ],
)
def test_other_position_biases(kind, number):
    attn = DeformableAttention(64, 2, 1, (6, 8), 'dat', 3, position_bias=kind)
    got = attention_terms(attn, 64, 6, 8)
    assert got['q k^T'] == got['weights v'] == 48 * 48 * 64
    assert got.get('position bias', 0) == number


@pytest.mark.parametrize('backend', backends('mmdat.ops.window_attention'))
def test_window_attention_counts_padded_positions(backend):
    dim, window = 64, 7
    attn = WindowAttention(dim, 2, window, shift=4, backend=backend)
    got = attention_terms(attn, dim, 10, 20)
    padded = 14 * 21
    assert got['q k^T'] == got['weights v'] == padded * window**2 * dim
    assert got['projections'] == 4 * padded * dim**2
    assert got['position bias'] == 0


@pytest.mark.parametrize(
    'backend', backends('mmdat.ops.neighborhood_attention')
)
def test_neighborhood_attention(backend):
    dim, kernel, height, width = 64, 7, 20, 29
    attn = NeighborhoodAttention(dim, 2, kernel, backend=backend)
    got = attention_terms(attn, dim, height, width)
    pairs = height * width * kernel**2
    assert got['q k^T'] == got['weights v'] == pairs * dim
    assert got['projections'] == 4 * height * width * dim**2
    assert attn.backend == backend


@pytest.mark.parametrize('arch', ['dat_t', 'dat_pp_t'])
def test_following_shapes_counts_what_running_does(arch):
    model = DAT(arch)
    shape = (1, 3, 64, 96)
    assert count(model, shape) == count(model, shape, fake=False)


def test_everything_is_seen():
    """Fused attention and sampling have terms of their own in a total."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, padding=1)
            self.linear = nn.Linear(5, 7)

        def forward(self, x):
            x = self.linear(self.conv(x))  # 1, 6, 8, 7
            x = F.scaled_dot_product_attention(x, x, x)
            grid = torch.zeros(1, 3, 2, 2, dtype=x.dtype)
            return F.grid_sample(x, grid, align_corners=True)

    counts = count(Model(), (1, 4, 8, 5))
    assert counts['conv'].layers == 6 * 8 * 5 * 4 * 9
    assert counts['linear'].layers == 6 * 8 * 5 * 7
    assert counts[''].products == 2 * 6 * 8 * 8 * 7
    assert counts[''].sampling == {6: 4 * 6 * 3 * 2}
    assert counts[''].layers == 0


def test_rows_add_up_to_the_model():
    model = DAT('dat_pp_t')
    counts = count(model, (1, 3, 64, 64))
    rows = break_down(model, counts)
    assert sum(r.multiply_adds for r in rows) == total(counts)
    assert sum(r.parameters for r in rows) == sum(
        p.numel() for p in model.parameters()
    )
    kinds = add_up(rows, 'kind')
    assert kinds['neighbourhood attention'] > 0 and kinds['norms'] == 0
    assert kinds['local perception'] > 0 and kinds['MLPs'] > 0
