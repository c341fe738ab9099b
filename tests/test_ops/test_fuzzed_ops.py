# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Every fast backend against plain PyTorch, on problems of any shape.

Blocks, tiles and chunks are made so small that even tiny problems fall into
many of them, with remainders at all ends.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from versions import has_torch, needs_torch

from mmdat.ops import (
    deformable_attention,
    neighborhood_attention,
    window_attention,
)
from mmdat.ops.position_bias import DenseBias, LogBias, TableBias
from mmdat.ops.sdpa import deformable as sdpa
from mmdat.ops.sdpa import shared_bias as small_bias
from mmdat.ops.separable import attention as separable
from mmdat.ops.separable import tiling as separable_blocks
from mmdat.ops.windows import WindowLayout, join_windows, split_windows

pytestmark = pytest.mark.fuzz
LOW = [torch.bfloat16]
if has_torch('2.4'):  # 2.1 multiplies no such matrices on a CPU
    LOW.append(torch.float16)


def log_mlp(weight, bias, out):
    def run(x):
        hidden = F.linear(x, weight.to(x), bias.to(x)).relu()
        return F.linear(hidden, out.to(x))

    return run


@pytest.fixture(autouse=True, scope='module')
def as_they_were():
    """Settings that cases change, and the threads."""
    constants = [
        (separable_blocks, name, getattr(separable_blocks, name))
        for name in ('BLOCK_SCORES', 'TILE_COLUMNS', 'BLOCK_KEYS')
    ]
    constants.append((separable, 'FIRST_KEYS', separable.FIRST_KEYS))
    constants += [
        (module, 'CHUNK_SCORES', module.CHUNK_SCORES)
        for module in (sdpa, small_bias)
    ]
    threads = torch.get_num_threads()
    yield
    for module, name, value in constants:
        setattr(module, name, value)
    torch.set_num_threads(threads)


def run(op, leaves, backend, dtypes, wants):
    """Output and gradients of the leaves that want some, as float64."""
    leaves = [
        x.to(dtype).detach().requires_grad_(want)
        for x, dtype, want in zip(leaves, dtypes, wants, strict=True)
    ]
    out = op(*leaves, backend=backend)
    wanted = [x for x in leaves if x.requires_grad]
    gradients = []
    if wanted:
        generator = torch.Generator().manual_seed(1)
        slope = torch.randn(
            out.shape, generator=generator, dtype=torch.float64
        )
        gradients = torch.autograd.grad(
            out, wanted, slope.to(out.dtype), allow_unused=True
        )
    for x, gradient in zip(wanted, gradients, strict=True):
        assert gradient is None or gradient.dtype == x.dtype
    return [
        torch.zeros(()).double() if x is None else x.double()
        for x in (out, *gradients)
    ]


def distance(a, b):
    return (a - b).norm().item()


def compare(op, leaves, backend, dtype, wants):
    """In float64 alike; else at most twice as far off as plain PyTorch.

    The first three leaves are of the type; the others, tables and places, of
    float32 at least.
    """
    wide = torch.promote_types(dtype, torch.float32)
    dtypes = [dtype] * 3 + [wide] * (len(leaves) - 3)
    leaves = [x.to(t).double() for x, t in zip(leaves, dtypes, strict=True)]
    exact = run(op, leaves, 'reference', [torch.float64] * len(leaves), wants)
    got = run(op, leaves, backend, dtypes, wants)
    plain = exact
    if dtype != torch.float64:
        plain = run(op, leaves, 'reference', dtypes, wants)
    eps = torch.finfo(dtype).eps
    q, k = leaves[:2]
    scores = (q.abs().amax() * k.abs().amax()).item() * q.shape[-1] ** 0.5
    for i, (ours, theirs, true) in enumerate(
        zip(got, plain, exact, strict=True)
    ):
        assert ours.shape == true.shape and ours.isfinite().all()
        # Where plain PyTorch is exact by luck: the rounding of the type, or
        # of large scores, from which the backward pass takes their level.
        limit = 2 * distance(theirs, true) + max(8, scores) * eps * (
            true.norm().item() + 1
        )
        if dtype == torch.float64:
            limit *= 100
        assert distance(ours, true) <= limit, (i, limit)


def strided(draw, generator, *shape):
    """Numbers whose memory lies in any order of their axes."""
    order = draw(st.permutations(range(len(shape))))
    x = torch.randn(
        *(shape[i] for i in order), generator=generator, dtype=torch.float64
    )
    return x.permute(*(order.index(i) for i in range(len(shape))))


def common(draw):
    """Seed, type, and who wants a gradient."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, *LOW]))
    return generator, dtype


@needs_torch('2.4')
@given(st.data())
def test_separable(data):
    draw = data.draw
    generator, dtype = common(draw)
    separable_blocks.BLOCK_SCORES = draw(
        st.sampled_from([1, 40, 300, 900_000])
    )
    separable_blocks.TILE_COLUMNS = draw(st.sampled_from([1, 2, 5, 48]))
    separable_blocks.BLOCK_KEYS = draw(st.sampled_from([1, 3, 7, 256]))
    separable.FIRST_KEYS = draw(st.sampled_from([1, 2, 16]))
    torch.set_num_threads(draw(st.integers(1, 3)))
    side = st.integers(1, 9)
    batch, groups, heads, dim = (draw(st.integers(1, 3)) for _ in range(4))
    height, width, hk, wk = (draw(side) for _ in range(4))
    axes = [
        torch.linspace(-1, 1, n, dtype=torch.float64)
        if n > 1
        else torch.zeros(1, dtype=torch.float64)
        for n in (height, width)
    ]
    leaves = [
        strided(draw, generator, batch, height, width, groups * heads, dim),
        strided(draw, generator, batch, hk, wk, groups * heads, dim),
        strided(draw, generator, batch, hk, wk, groups * heads, dim),
        strided(draw, generator, groups * heads, draw(side), draw(side)),
        strided(draw, generator, batch, groups, hk, wk, 2),
    ]
    # On the map, around it, and far beyond the table.
    leaves[4] = leaves[4] * draw(st.sampled_from([0.3, 1.0, 3.0, 100.0]))
    # Scores between which the first keys say nothing of the others.
    leaves[1] = leaves[1] * draw(st.sampled_from([1.0, 1.0, 30.0]))
    wants = [draw(st.booleans()) for _ in leaves]

    def op(q, k, v, table, points, backend):
        bias = TableBias(table, *(x.to(points.dtype) for x in axes), points)
        return deformable_attention(q, k, v, bias, backend=backend)

    compare(op, leaves, 'separable', dtype, wants)


@given(st.data())
def test_sdpa(data):
    draw = data.draw
    generator, dtype = common(draw)
    sdpa.CHUNK_SCORES = draw(st.sampled_from([1, 2**21]))
    kind = draw(st.sampled_from(['table', 'dense', 'log', 'none']))
    batch, groups, heads, dim = (draw(st.integers(1, 3)) for _ in range(4))
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    hk, wk = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    axes = [torch.linspace(-1, 1, n).double() for n in (height, width)]
    leaves = [
        strided(draw, generator, batch, height, width, groups * heads, dim),
        strided(draw, generator, batch, hk, wk, groups * heads, dim),
        strided(draw, generator, batch, hk, wk, groups * heads, dim),
        strided(draw, generator, groups * heads, 5, 4),
        strided(draw, generator, batch, groups, hk, wk, 2),
        strided(draw, generator, 6, 2),
        strided(draw, generator, 6),
        strided(draw, generator, heads, 6),
        strided(draw, generator, groups * heads, height * width, hk * wk),
    ]

    def op(q, k, v, table, points, weight, shift, out, scores, backend):
        where = [x.to(points.dtype) for x in axes]
        bias = {
            'table': TableBias(table, *where, points),
            'dense': DenseBias(scores),
            'log': LogBias(log_mlp(weight, shift, out), *where, points),
            'none': None,
        }[kind]
        return deformable_attention(q, k, v, bias, backend=backend)

    compare(op, leaves, 'sdpa', dtype, [False] * len(leaves))
    compare(op, leaves, 'sdpa', torch.float64, [True] * len(leaves))


@given(st.data())
def test_sdpa_neighborhood(data):
    draw = data.draw
    generator, dtype = common(draw)
    small_bias.CHUNK_SCORES = draw(st.sampled_from([1, 3000, 2**20]))
    kernel = draw(st.sampled_from([1, 3, 5, 7]))
    batch, heads, dim = (draw(st.integers(1, 3)) for _ in range(3))
    height, width = (draw(st.integers(kernel, kernel + 17)) for _ in range(2))
    shape = batch, height, width, heads, dim
    leaves = [strided(draw, generator, *shape) for _ in range(3)]
    leaves += [strided(draw, generator, heads, 2 * kernel - 1, 2 * kernel - 1)]

    def op(q, k, v, table, backend):
        return neighborhood_attention(q, k, v, table, kernel, backend=backend)

    wants = [draw(st.booleans()) for _ in leaves]
    compare(op, leaves, 'sdpa', dtype, wants)


@given(st.data())
def test_sdpa_windows(data):
    draw = data.draw
    generator, dtype = common(draw)
    small_bias.CHUNK_SCORES = draw(st.sampled_from([1, 100, 2**20]))
    size = draw(st.integers(1, 5))
    shift = draw(st.sampled_from([0, size // 2, -(-size // 2)]))
    if shift == size:
        shift = 0
    batch, heads, dim = (draw(st.integers(1, 3)) for _ in range(3))
    height, width = (draw(st.integers(1, 14)) for _ in range(2))
    layout = WindowLayout(height, width, size, shift)
    shape = batch, height, width, heads * dim
    leaves = [strided(draw, generator, *shape) for _ in range(3)]
    leaves += [strided(draw, generator, (2 * size - 1) ** 2, heads)]

    def op(q, k, v, table, backend):
        q, k, v = (
            split_windows(x, layout).unflatten(-1, (heads, dim))
            for x in (q, k, v)
        )
        out = window_attention(q, k, v, table, layout, backend=backend)
        return join_windows(out.flatten(-2), layout)

    wants = [draw(st.booleans()) for _ in leaves]
    compare(op, leaves, 'sdpa', dtype, wants)


@needs_torch('2.4')
@pytest.mark.parametrize('side', [-1, 1])
@pytest.mark.parametrize('axis', [0, 1])
def test_places_beyond_the_table_move_nothing(axis, side):
    """Where the table is zero all around, a point has no slope."""
    points = torch.zeros(1, 1, 1, 2, 2, dtype=torch.float64)
    points[..., axis] = side * 9
    points.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, *n, 1, 3, generator=generator, dtype=torch.float64)
        for n in ((2, 2), (1, 2), (1, 2))
    )
    where = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    table = torch.randn(1, 3, 3, generator=generator, dtype=torch.float64)
    bias = TableBias(table, where, where, points)
    out = deformable_attention(q, k, v, bias, backend='separable')
    weights = torch.randn(out.shape, generator=generator).double()
    (out * weights).sum().backward()
    assert points.grad.count_nonzero() == 0
