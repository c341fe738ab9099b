# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Blocks of every shape against the reference, outputs and gradients."""

import multiprocessing

import pytest
import torch
from versions import needs_torch

from mmdat.ops import deformable_attention, explain, reference
from mmdat.ops.coordinates import deformed_points_yx, query_axis
from mmdat.ops.position_bias import DenseBias, TableBias
from mmdat.ops.separable import attention as separable
from mmdat.ops.separable import threads
from mmdat.ops.separable import tiling as separable_blocks

# Before, the backend declines.
pytestmark = needs_torch('2.4')

# Batch, heads, groups, query map, key grid, table.
PROBLEMS = {
    'square': (1, 2, 1, (6, 6), (6, 6), (11, 11)),
    'all sides differ': (2, 4, 2, (7, 9), (5, 6), (13, 9)),
    'one row': (2, 3, 3, (1, 9), (1, 5), (5, 13)),
    'one column': (1, 2, 1, (8, 1), (4, 1), (11, 3)),
    'one key': (1, 6, 2, (5, 4), (1, 1), (7, 7)),
    'one of all': (1, 1, 1, (1, 1), (1, 1), (1, 1)),
    'few cells': (1, 2, 2, (11, 17), (3, 4), (3, 5)),
}
BLOCKS = {'default': (900_000, 48, 256), 'tiny': (60, 4, 3), 'one': (1, 1, 1)}


@pytest.fixture(params=BLOCKS.values(), ids=BLOCKS.keys())
def blocks(request, monkeypatch):
    scores, columns, keys = request.param
    monkeypatch.setattr(separable_blocks, 'BLOCK_SCORES', scores)
    monkeypatch.setattr(separable_blocks, 'TILE_COLUMNS', columns)
    monkeypatch.setattr(separable_blocks, 'BLOCK_KEYS', keys)


@pytest.fixture(params=[1, 2, 3])
def cores(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def problem(name, convention='dat', dtype=torch.float64, spread=0.4, dim=5):
    batch, heads, groups, queries, keys, table = PROBLEMS[name]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    like = torch.empty(0, dtype=torch.float64)
    points = deformed_points_yx(
        random(batch, groups, *keys, 2) * spread,
        convention,
        2 if convention == 'dat' else -1,
    )
    bias = TableBias(
        random(heads, *table),
        *(query_axis(n, convention, like) for n in queries),
        points,
    )
    area, samples = queries[0] * queries[1], keys[0] * keys[1]
    q, k, v = (random(batch, heads, n, dim) for n in (area, samples, samples))
    q, k, v, *bias = (t.to(dtype) for t in (q, k, v, *bias))
    return q, k, v, TableBias(*bias)


def results(run, q, k, v, bias):
    """Output, and gradients of all that has one."""
    leaves = [
        t.detach().clone().requires_grad_()
        for t in (q, k, v, bias.table, bias.points_yx)
    ]
    bias = bias._replace(table=leaves[3], points_yx=leaves[4])
    out = run(*leaves[:3], bias, 0.7, 0.0)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(
        out.shape, generator=generator, dtype=torch.float64
    ).to(out)
    return (out, *torch.autograd.grad((out * weights).sum(), leaves))


def assert_equal(ours, wanted, tolerance):
    for a, b in zip(ours, wanted, strict=True):
        error = (a - b).abs().max()
        assert error <= tolerance * max(b.abs().max(), 1), error


@pytest.mark.parametrize('convention', ['dat', 'dat_pp'])
@pytest.mark.parametrize('name', PROBLEMS)
def test_equals_reference(name, convention, blocks, cores):
    args = problem(name, convention)
    assert_equal(
        results(separable.deformable_attention, *args),
        results(reference.deformable_attention, *args),
        1e-12,
    )


def test_points_far_outside_read_zeros(blocks):
    args = problem('all sides differ', spread=1)
    bias = args[3]._replace(points_yx=4 * args[3].points_yx)
    assert_equal(
        results(separable.deformable_attention, *args[:3], bias),
        results(reference.deformable_attention, *args[:3], bias),
        1e-12,
    )


@pytest.mark.parametrize('high', [0, -1])
def test_scores_too_far_apart_for_one_level(high, monkeypatch):
    """The first keys give the level; others may outdo them beyond e^88."""
    monkeypatch.setattr(separable, 'FIRST_KEYS', 1)
    monkeypatch.setattr(separable_blocks, 'BLOCK_KEYS', 2)
    q, k, v, bias = problem('square', dtype=torch.float32)
    q, k = q.abs(), k.clone()
    k[:, :, high] = 300
    assert_equal(
        results(separable.deformable_attention, q, k, v, bias)[:1],
        results(reference.deformable_attention, q, k, v, bias)[:1],
        1e-6,
    )


def test_gradcheck():
    q, k, v, bias = problem('all sides differ', dim=2)
    leaves = (q, k, v, bias.table, bias.points_yx)

    def run(q, k, v, table, points_yx):
        moved = bias._replace(table=table, points_yx=points_yx)
        return separable.deformable_attention(q, k, v, moved, 0.7)

    leaves = [t.clone().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_plain(dtype):
    """At most twice the error of plain PyTorch in the same precision."""
    q, k, v, bias = problem('all sides differ', dtype=torch.float32)
    exact = reference.deformable_attention(q, k, v, bias, 0.7, 0.0)
    low = [t.to(dtype) for t in (q, k, v)]
    plain = reference.deformable_attention(*low, bias, 0.7, 0.0)
    ours = separable.deformable_attention(*low, bias, 0.7)
    assert ours.dtype == dtype
    worst = (plain.float() - exact).abs().max()
    assert (ours.float() - exact).abs().max() <= 2 * worst


def test_the_same_bits_every_time(cores):
    args = problem('few cells', dtype=torch.float32)
    first = results(separable.deformable_attention, *args)
    for _ in range(3):
        again = results(separable.deformable_attention, *args)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_registered_as_torch_wants_it():
    q, k, v, bias = problem('all sides differ')
    tensors = [t.requires_grad_() for t in (q, k, v)]
    torch.library.opcheck(
        torch.ops.mmdat.separable_attention.default,
        (*tensors, *bias, 0.7),
    )


def test_reasons():
    q, k, v, bias = problem('square')
    size = (6, 6)

    def why_not(bias, **options):
        maps = (t.transpose(1, 2).unflatten(1, size) for t in (q, k, v))
        found = explain(deformable_attention, *maps, bias, **options)
        return found['separable']

    assert 'slower below' in why_not(bias)
    assert 'bias tables only; got DenseBias' in why_not(DenseBias(k))
    assert 'got dropout=0.5' in why_not(bias, dropout=0.5)


@pytest.mark.parametrize('how', ['trace', 'export'])
def test_graphs_for_others_show_plain_operations(how, monkeypatch):
    monkeypatch.setattr(separable, 'LEAST_PAIRS', {True: 1, False: 1})
    q, k, v, bias = problem('square', dtype=torch.float32)

    class Attention(torch.nn.Module):
        def forward(self, *tensors):
            maps = (t.transpose(1, 2).unflatten(1, (6, 6)) for t in tensors)
            return deformable_attention(*maps, bias)

    attention, x = Attention(), (q, k, v)
    with torch.no_grad():
        if how == 'trace':
            run = torch.jit.trace(attention, x)
            graph = str(run.inlined_graph)
        else:
            program = torch.export.export(attention, x, strict=False)
            run = program.module()
            parts = program.graph_module.modules()
            graph = ' '.join(str(part.graph) for part in parts)
        assert 'mmdat::' not in graph
        assert 'ops.mmdat' not in graph
        assert 'grid_sampler' in graph
        torch.testing.assert_close(run(*x), attention(*x))


def _attend_in_child(queue):
    args = problem('few cells')
    queue.put(separable.deformable_attention(*args, 0.7).sum().item())


def test_a_forked_process_makes_threads_of_its_own(cores):
    args = problem('few cells')
    wanted = separable.deformable_attention(*args, 0.7).sum().item()
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    child = context.Process(target=_attend_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == pytest.approx(wanted)
    child.join()


def test_threads_keep_order_and_errors(cores):
    items = list(range(7))
    sums = threads.run(sum, items)
    assert sum(sums) == 21
    assert sums == [sum(items[i::cores]) for i in range(cores)]
    assert torch.get_num_threads() == cores

    def fail(share):
        raise ValueError('told')

    with pytest.raises(ValueError, match='told'):
        threads.run(fail, items)
