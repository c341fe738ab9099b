# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Huge scores, and positions and features that are no numbers.

Forward and backward, every fast backend against plain PyTorch.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from versions import needs_torch

from mmdat.ops import (
    deformable_attention,
    neighborhood_attention,
    sample_at_points,
    window_attention,
)
from mmdat.ops.position_bias import TableBias
from mmdat.ops.sampling import _by_index
from mmdat.ops.windows import WindowLayout

pytestmark = [pytest.mark.fuzz, needs_torch('2.4')]
NAN, INF = float('nan'), float('inf')


def deformable(draw):
    """Shapes of the leaves of a problem, and the op on them."""
    batch, groups, heads, dim = (draw(st.integers(1, 3)) for _ in range(4))
    height, width, hk, wk = (draw(st.integers(1, 6)) for _ in range(4))
    axes = [torch.linspace(-1, 1, n) for n in (height, width)]

    def op(q, k, v, table, points, backend):
        where = [x.to(points.dtype) for x in axes]
        bias = TableBias(table, *where, points)
        return deformable_attention(q, k, v, bias, backend=backend)

    queries = batch, height, width, groups * heads, dim
    keys = batch, hk, wk, groups * heads, dim
    table = groups * heads, draw(st.integers(1, 9)), draw(st.integers(1, 9))
    return op, [queries, keys, keys, table, (batch, groups, hk, wk, 2)]


def neighborhood(draw):
    kernel = draw(st.sampled_from([1, 3, 5]))
    batch, heads, dim = (draw(st.integers(1, 3)) for _ in range(3))
    height, width = (draw(st.integers(kernel, kernel + 9)) for _ in range(2))

    def op(q, k, v, table, backend):
        return neighborhood_attention(q, k, v, table, kernel, backend=backend)

    shape = batch, height, width, heads, dim
    return op, [*[shape] * 3, (heads, 2 * kernel - 1, 2 * kernel - 1)]


def windows(draw):
    size = draw(st.integers(2, 4))
    layout = WindowLayout(
        *(draw(st.integers(1, 9)) for _ in range(2)),
        size,
        draw(st.sampled_from([0, -(-size // 2)])),
    )
    heads, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def op(q, k, v, table, backend):
        return window_attention(q, k, v, table, layout, backend=backend)

    rows, columns = layout.grid()
    shape = rows * columns, 2, size**2, heads, dim
    return op, [*[shape] * 3, ((2 * size - 1) ** 2, heads)]


PROBLEMS = {
    'separable': deformable,
    'sdpa': deformable,
    'sdpa neighborhood': neighborhood,
    'sdpa windows': windows,
}


def problem(draw):
    """A backend, an op, and numbers to begin with."""
    name = draw(st.sampled_from(sorted(PROBLEMS)))
    op, shapes = PROBLEMS[name](draw)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    leaves = [torch.randn(shape, generator=generator) for shape in shapes]
    return name.partition(' ')[0], op, leaves


def run(op, leaves, backend):
    """Output, and gradients of all leaves, as float64."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out = op(*leaves, backend=backend)
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(out.shape, generator=generator).to(out.dtype)
    gradients = torch.autograd.grad(out, leaves, slope)
    return [x.double() for x in (out, *gradients)]


@given(st.data())
def test_huge_scores(data):
    """Scores up to 1e8, of which one key of each query takes all."""
    draw = data.draw
    backend, op, leaves = problem(draw)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    scales = [1.0, 1e2, 1e4]
    for i in (0, 1):
        leaves[i] *= draw(st.sampled_from(scales))
    leaves[3] *= draw(st.sampled_from(scales))
    leaves[:3] = [x.to(dtype) for x in leaves[:3]]
    exact = run(op, [x.double() for x in leaves], 'reference')
    plain = run(op, leaves, 'reference')
    ours = run(op, leaves, backend)
    q, k, _, table = leaves[:4]
    # What rounding of the scores may do to a weight, and so to all that
    # weights are multiplied with.
    largest = (q.abs().amax() * k.abs().amax() * q.shape[-1]).double()
    largest = (largest + table.abs().amax()).item()
    loss = min(8 * (largest + 1) * torch.finfo(dtype).eps, 1)
    leaf_sizes = [1, *(x.double().norm().item() + 1 for x in leaves)]
    everything = max(leaf_sizes) ** 2
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert mine.isfinite().all()
        limit = 2 * (theirs - true).norm() + loss * (true.norm() + everything)
        assert (mine - true).norm() <= limit


@pytest.mark.parametrize('threads', [1, 2])
def test_gradients_where_scores_are_beyond_reason(threads):
    """Weights of the backward pass are those of the forward pass.

    The rounding of a score of 1e9 is worth a factor of 2 ** 64.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    leaves = [
        *(random(1, *n, 4, 3) for n in ((9, 8), (5, 4), (5, 4))),
        random(4, 7, 7),
        random(1, 2, 5, 4, 2),
    ]
    leaves[1] *= 1e9
    axes = [torch.linspace(-1, 1, n) for n in (9, 8)]

    def op(q, k, v, table, points, backend):
        bias = TableBias(table, *axes, points)
        return deformable_attention(q, k, v, bias, backend=backend)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, plain = (run(op, leaves, b) for b in ('separable', 'reference'))
    finally:
        torch.set_num_threads(before)
    # Out, and the gradient of the values: what is made of weights alone.
    for i in (0, 3):
        torch.testing.assert_close(ours[i], plain[i], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- no numbers


def spoil(draw, x, values):
    """A copy with one number replaced."""
    x = x.clone()
    place = draw(st.integers(0, x.numel() - 1))
    x.view(-1)[place] = draw(st.sampled_from(values))
    return x


def assert_same(a, b):
    """But for the level that is taken from scores."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@given(st.data())
def test_features_that_are_no_numbers(data):
    """What is NaN in plain PyTorch is so in all; other images stay clean."""
    draw = data.draw
    backend, op, leaves = problem(draw)
    which = draw(st.integers(0, 2))
    clean = run(op, leaves, backend)
    value = draw(st.sampled_from([NAN, INF, -INF]))
    leaves[which] = spoil(draw, leaves[which], [value])
    plain = run(op, leaves, 'reference')
    ours = run(op, leaves, backend)
    if value != value:
        for mine, theirs in zip(ours, plain, strict=True):
            assert (mine.isnan() >= theirs.isnan()).all()
    # Neighbourhoods are looked at in tiles, and share what is no number.
    # What sees no key but at minus infinity is zero in fused attention.
    if not op.__qualname__.startswith('neighborhood'):
        assert (ours[0].isfinite() >= plain[0].isfinite()).all()
    if op.__qualname__.startswith('windows'):
        return
    image = leaves[which].isfinite().flatten(1).all(1)
    for i in range(4):  # out and gradients of q, k, v
        assert_same(ours[i][image], clean[i][image])


@given(st.data())
def test_positions_that_are_no_numbers(data):
    """NaN where plain PyTorch has NaN, and never a crash."""
    draw = data.draw
    op, shapes = deformable(draw)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    leaves = [torch.randn(shape, generator=generator) for shape in shapes]
    clean = run(op, leaves, 'separable')
    values = draw(st.sampled_from([[NAN], [INF, -INF, 3e38, -1e20]]))
    before = leaves[4]
    leaves[4] = spoil(draw, before, values)
    plain = run(op, leaves, 'reference')
    image = (leaves[4] == before).flatten(1).all(1)
    for backend in ('separable', 'sdpa'):
        ours = run(op, leaves, backend)
        for mine, theirs in zip(ours[:4], plain[:4], strict=True):
            if values == [NAN]:
                assert torch.equal(mine.isnan(), theirs.isnan())
            else:  # at infinity there may be nothing, or no number
                assert (mine.isfinite() >= theirs.isfinite()).all()
        for i in range(4):
            assert_same(ours[i][image], clean[i][image])


@given(st.data())
def test_sampling_at_no_number(data):
    draw = data.draw
    batch, groups, dim, height, width = (
        draw(st.integers(1, 3)) for _ in range(5)
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(batch, height, width, groups * dim, generator=generator)
    points = torch.randn(batch, groups, 2, 3, 2, generator=generator)
    value = draw(st.sampled_from([NAN, INF, -INF, 3e38, -1e20]))
    points = spoil(draw, points, [value])
    x.requires_grad_()
    points.requires_grad_()
    out = sample_at_points(x, points)
    out.sum().backward()
    touched = (points.detach() == value).any(-1) | points.isnan().any(-1)
    touched = touched.permute(0, 2, 3, 1).repeat_interleave(dim, -1)
    assert out[~touched].isfinite().all()
    if value != value:
        assert out[touched].isnan().all()
    assert points.grad.isfinite()[points.isfinite().all(-1)].all()
    # The way it is done where results have to repeat exactly.
    maps = x.detach().permute(0, 3, 1, 2).reshape(-1, dim, height, width)
    again = _by_index(maps, points.detach().flip(-1).flatten(0, 1))
    again = again.reshape(batch, -1, 2, 3).permute(0, 2, 3, 1)
    if value != value:
        assert torch.equal(again.isnan(), out.isnan())
    torch.testing.assert_close(again[~touched], out[~touched])
