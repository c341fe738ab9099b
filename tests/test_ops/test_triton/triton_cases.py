# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The Triton backends against plain PyTorch in float64.

Triton decides when a kernel is defined whether to interpret or to compile it,
so test_triton.py runs this file in processes of its own: in the interpreter
on the CPU, and where there is a GPU also on that.
"""

import pytest
import torch

from mmdat.ops import (
    deformable_attention,
    dispatch,
    neighborhood_attention,
)
from mmdat.ops.deformable_attention import BACKENDS as DEFORMABLE_BACKENDS
from mmdat.ops.neighborhood_attention import BACKENDS as NEIGHBORHOOD_BACKENDS
from mmdat.ops.position_bias import TableBias
from mmdat.ops.triton import common as triton_common
from mmdat.ops.triton import deformable as triton_deformable
from mmdat.ops.triton import layer_norm as triton_layer_norm
from mmdat.ops.triton import neighborhood as triton_neighborhood
from mmdat.ops.triton import sampling as triton_sampling

DEVICE = 'cpu' if triton_common.INTERPRETED else 'cuda'
LOW = [torch.float16, torch.bfloat16]


def random(*shape):
    """Numbers whose memory lies in another order than their axes."""
    x = torch.randn(*shape[::-1], dtype=torch.float64, device=DEVICE)
    return x.permute(*reversed(range(len(shape))))


def run(op, leaves, backend, dtypes):
    """Output and gradients, computed in these types, as float64."""
    leaves = [
        x.to(dtype).detach().requires_grad_()
        for x, dtype in zip(leaves, dtypes, strict=True)
    ]
    out = op(*leaves, backend=backend)
    torch.manual_seed(1)
    slope = random(*out.shape).to(out.dtype)
    gradients = torch.autograd.grad(out, leaves, slope)
    for x, gradient in zip(leaves, gradients, strict=True):
        assert gradient.dtype == x.dtype
    return [x.double() for x in (out, *gradients)]


def errors(got, exact):
    """Relative root mean square errors."""
    return [
        ((a - b).norm() / b.norm().clamp(min=1e-12)).item()
        for a, b in zip(got, exact, strict=True)
    ]


def in_float32(op, leaves):
    """Errors of a Triton backend in float32."""
    exact = run(op, leaves, 'reference', [torch.float64] * len(leaves))
    got = run(op, leaves, 'triton', [torch.float32] * len(leaves))
    return errors(got, exact)


def compare_low(op, leaves, dtype):
    """No more than twice the errors of plain PyTorch in these types."""
    # Rounded first, so that all three compute the same thing.
    leaves = [x.to(dtype).double() for x in leaves[:3]] + [
        x.float().double() for x in leaves[3:]
    ]
    exact = run(op, leaves, 'reference', [torch.float64] * len(leaves))
    dtypes = [dtype] * 3 + [torch.float32] * (len(leaves) - 3)
    got = errors(run(op, leaves, 'triton', dtypes), exact)
    plain = errors(run(op, leaves, 'reference', dtypes), exact)
    for ours, theirs in zip(got, plain, strict=True):
        assert ours <= 2 * theirs + 1e-6, (got, plain)


# ------------------------------------------------------ deformable attention

# Batch, query map, key grid, heads, groups, channels, table. Queries and keys
# fill less than a block, or one and some; a map is one pixel high; the heads
# of a group are 1, 2 and 3; all sides differ, so that no mix-up goes unseen.
DEFORMABLE = {
    'two groups': (2, (3, 7), (2, 5), 4, 2, 5, (5, 9)),
    'one row': (1, (1, 70), (1, 37), 1, 1, 20, (1, 4)),
    'several blocks': (1, (6, 11), (5, 13), 3, 1, 3, (4, 3)),
    'one pixel': (1, (1, 1), (1, 1), 2, 2, 1, (1, 1)),
    'wide heads': (1, (5, 7), (4, 5), 1, 1, 33, (3, 4)),
    # The gradient of a table is computed in windows of 32 x 32.
    'large table': (1, (2, 17), (1, 2), 2, 1, 4, (34, 3)),
}


def deformable_case(name):
    batch, queries, keys, heads, groups, dim, table = DEFORMABLE[name]
    torch.manual_seed(0)
    axes = [
        torch.linspace(-1, 1, n, dtype=torch.float64, device=DEVICE)
        for n in queries
    ]

    def op(q, k, v, table, points, backend):
        where = (x.to(points.dtype) for x in axes)
        bias = TableBias(table, *where, points)
        return deformable_attention(q, k, v, bias, backend=backend)

    leaves = [
        random(batch, *queries, heads, dim),
        random(batch, *keys, heads, dim),
        random(batch, *keys, heads, dim),
        random(heads, *table),
        # Many displacements then point beyond the table.
        random(batch, groups, *keys, 2) * 1.5,
    ]
    return op, leaves


@pytest.mark.parametrize('name', list(DEFORMABLE))
def test_deformable_attention(name, monkeypatch):
    monkeypatch.setattr(triton_deformable, 'SLICE_QUERIES', 32)
    assert max(in_float32(*deformable_case(name))) < 5e-6


@pytest.mark.parametrize('dtype', LOW)
def test_deformable_attention_in_low_precision(dtype):
    compare_low(*deformable_case('two groups'), dtype)


def test_places_on_the_borders_of_cells():
    """Where a derivative jumps, the one of plain PyTorch is taken."""
    op, leaves = deformable_case('two groups')
    q, k, v, table, points = leaves
    table = random(4, 5, 9)
    # The axes of the queries are in steps of 1 and 1 / 3.
    points = (points * 2).round().clamp(-2, 2) / 2
    points[..., 1] = points[..., 1].round() * 3 / 3
    leaves = [q, k, v, table, points]
    exact = run(op, leaves, 'reference', [torch.float32] * 5)
    got = run(op, leaves, 'triton', [torch.float32] * 5)
    assert max(errors(got, exact)) < 1e-5


def test_the_same_gradient_every_time():
    """Also under deterministic algorithms, and without PyTorch's refusal."""
    op, leaves = deformable_case('several blocks')
    dtypes = [torch.float32] * 5
    once = run(op, leaves, 'triton', dtypes)
    torch.use_deterministic_algorithms(True)
    try:
        again = run(op, leaves, 'triton', dtypes)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_places_beyond_the_table_get_no_gradient():
    op, leaves = deformable_case('two groups')
    leaves[4] = leaves[4].sign() * 40
    exact = run(op, leaves, 'reference', [torch.float64] * 5)
    got = run(op, leaves, 'triton', [torch.float32] * 5)
    assert exact[4].count_nonzero() == exact[5].count_nonzero() == 0
    assert got[4].count_nonzero() == got[5].count_nonzero() == 0
    assert max(errors(got, exact)[:4]) < 5e-6


@pytest.mark.filterwarnings('error:invalid value encountered in cast')
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -1e30])
def test_positions_that_are_no_numbers(value):
    """NaN where plain PyTorch has NaN, and nothing is read elsewhere."""
    op, leaves = deformable_case('two groups')
    leaves[4][1, 0, 1, 2] = torch.tensor([0.1, value])
    exact = run(op, leaves, 'reference', [torch.float64] * 5)
    got = run(op, leaves, 'triton', [torch.float32] * 5)
    if value == float('inf'):  # nothing or no number
        assert all(
            (x.isfinite() >= y.isfinite()).all()
            for x, y in zip(got, exact, strict=True)
        )
        return
    for ours, theirs in zip(got[:4], exact[:4], strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
        assert errors([ours], [theirs])[0] < 5e-6
    assert exact[0].isnan().any() == (value != value)


@pytest.mark.parametrize('dtype', [torch.float32, *LOW])
def test_huge_scores_stay_finite(dtype):
    op, leaves = deformable_case('two groups')
    leaves[1] = leaves[1] * 3e3
    leaves[3] = leaves[3] * 1e4
    dtypes = [dtype] * 3 + [torch.float32] * 2
    for result in run(op, leaves, 'triton', dtypes):
        assert result.isfinite().all()


def test_coordinates_stay_exact_in_low_precision():
    """Displacements rounded to 8 bits would read other cells of the table."""
    queries = torch.zeros(1, 1, 200, 1, 8, device=DEVICE)
    k = torch.zeros(1, 1, 3, 1, 8, device=DEVICE)
    v = torch.eye(3, 8, device=DEVICE)[None, None, :, None]
    table = torch.zeros(1, 1, 399, device=DEVICE)
    table[..., ::2] = 4
    points = torch.tensor([[0.0, -0.9], [0.0, 0.13], [0.0, 0.77]])
    axis = torch.arange(200, device=DEVICE) / 199 * 2 - 1
    points = points[None, None, None].to(DEVICE)
    bias = TableBias(table, torch.zeros(1, device=DEVICE), axis, points)
    exact = deformable_attention(queries, k, v, bias, backend='reference')
    low = deformable_attention(
        *(x.bfloat16() for x in (queries, k, v)), bias, backend='triton'
    )
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.02


def test_without_a_bias():
    op, leaves = deformable_case('two groups')

    def without(q, k, v, backend):
        return deformable_attention(q, k, v, backend=backend)

    assert max(in_float32(without, leaves[:3])) < 5e-6


def test_only_what_is_asked_for_gets_a_gradient():
    op, leaves = deformable_case('two groups')
    leaves = [x.float().detach() for x in leaves]
    leaves[0].requires_grad_()
    (alone,) = torch.autograd.grad(op(*leaves, 'triton').sum(), leaves[:1])
    for x in leaves:
        x.requires_grad_()
    both = torch.autograd.grad(op(*leaves, 'triton').sum(), leaves[:1])
    torch.testing.assert_close(alone, both[0])


# --------------------------------------------------- neighbourhood attention

# Batch, map, neighbourhood, heads, channels. A tile has 8 x 8 queries, 4 x 8
# where heads are wide.
NEIGHBORHOOD = {
    'tiles': (1, (5, 11), 3, 1, 3),
    'images and heads': (2, (4, 5), 3, 2, 3),
    # The last queries see keys of the tile before theirs.
    'as small as the neighbourhood': (1, (7, 13), 7, 1, 5),
    'wider than a tile, wide heads': (1, (6, 5), 5, 1, 33),
    'itself only': (1, (1, 9), 1, 2, 1),
}


def neighborhood_case(name):
    batch, size, kernel, heads, dim = NEIGHBORHOOD[name]
    torch.manual_seed(0)

    def op(q, k, v, table, backend):
        return neighborhood_attention(q, k, v, table, kernel, backend=backend)

    leaves = [random(batch, *size, heads, dim) for _ in range(3)]
    return op, [*leaves, random(heads, 2 * kernel - 1, 2 * kernel - 1)]


@pytest.mark.parametrize('name', list(NEIGHBORHOOD))
def test_neighborhood_attention(name):
    assert max(in_float32(*neighborhood_case(name))) < 5e-6


@pytest.mark.parametrize('dtype', LOW)
def test_neighborhood_attention_in_low_precision(dtype):
    compare_low(*neighborhood_case('tiles'), dtype)


# ------------------------------------------------------------------ sampling


def sampling_case(dtype=torch.float32):
    """Leaves on an odd map: points inside, on pixels, at edges and beyond."""
    torch.manual_seed(0)
    x = random(2, 5, 9, 6).to(dtype).double()
    points = random(2, 3, 4, 5, 2)
    points[0, 0, 0] = torch.tensor(
        [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5], [1.2, -1.1], [7.0, 0.3]],
        dtype=torch.float64,
    )
    return [x, points.float().double()]


def sample(x, points, backend):
    if backend == 'triton':
        return triton_sampling.sample_at_points(x, points)
    # Plainly, also where that would choose Triton.
    batch, groups, hk, wk, _ = points.shape
    maps = x.permute(0, 3, 1, 2).unflatten(1, (groups, -1)).flatten(0, 1)
    out = torch.nn.functional.grid_sample(
        maps.to(points.dtype),
        points.flip(-1).flatten(0, 1),
        align_corners=True,
    )
    out = out.unflatten(0, (batch, groups)).flatten(1, 2)
    return out.permute(0, 2, 3, 1).to(x.dtype)


@pytest.mark.parametrize('dtype', [torch.float32, *LOW])
def test_sampling(dtype):
    leaves = sampling_case(dtype)
    exact = run(sample, leaves, 'plain', [torch.float64] * 2)
    got = run(sample, leaves, 'triton', [dtype, torch.float32])
    # The samples are rounded, and so is the slope of what comes after.
    allowed = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
    assert max(errors(got, exact)) < allowed[dtype]


def test_sampling_at_what_is_no_number():
    x, points = (t.float() for t in sampling_case())
    points[1, 2, 3, 4, 0] = float('nan')
    points[1, 1, 0, 0, 1] = -1e30
    out = triton_sampling.sample_at_points(x, points)
    nowhere = out.isnan()
    assert nowhere[1, 3, 4, 4:].all()
    assert nowhere.sum() == 2
    assert out[1, 0, 0, 2:4].count_nonzero() == 0


# ----------------------------------------------------------------- LayerNorm


@pytest.mark.parametrize('dtype', LOW)
@pytest.mark.parametrize('channels', [1, 5, 96, 300])
def test_layer_norm(channels, dtype):
    """As computed in float32 and cast, up to what casting loses."""
    torch.manual_seed(0)
    leaves = [random(2, 3, 11, channels) * 5 + 1]
    leaves += [random(channels) + 1, random(channels)]

    def norm(x, weight, bias, backend):
        if backend == 'triton':
            return triton_layer_norm.layer_norm(x, weight, bias, 1e-5, dtype)
        return torch.nn.functional.layer_norm(
            x, weight.shape, weight, bias, 1e-5
        )

    exact = run(norm, leaves, 'plain', [torch.float64] * 3)
    got = run(norm, leaves, 'triton', [torch.float32] * 3)
    assert errors(got, exact)[0] < {LOW[0]: 5e-4, LOW[1]: 4e-3}[dtype]
    if channels > 1:  # what comes back is of the size of the rounding there
        assert max(errors(got, exact)) < {LOW[0]: 1e-3, LOW[1]: 6e-3}[dtype]


def test_layer_norm_of_half_maps_and_of_nothing():
    torch.manual_seed(0)
    x = random(3, 7, 20).bfloat16().requires_grad_()
    weight, bias = random(2, 20).float()
    weight.requires_grad_()
    out = triton_layer_norm.layer_norm(x, weight, bias, 1e-5, x.dtype)
    exact = torch.nn.functional.layer_norm(
        x.double(), (20,), weight.double(), bias.double()
    )
    assert out.dtype == x.dtype
    assert errors([out.double()], [exact])[0] < 4e-3
    slope = torch.ones_like(out)
    got = torch.autograd.grad(out, (x, weight), slope)
    exact = torch.autograd.grad(exact, (x, weight), slope)
    assert got[0].dtype == x.dtype
    torch.testing.assert_close(got[1], exact[1], rtol=1e-4, atol=1e-4)
    none = triton_layer_norm.layer_norm(x[:0], weight, bias, 1e-5, x.dtype)
    assert none.shape == (0, 7, 20)


# ----------------------------------------------------- dispatch and compiling


def test_are_chosen():
    op, leaves = deformable_case('one pixel')
    q, k, v, table, points = (x.float() for x in leaves)
    axis = torch.zeros(1, device=DEVICE)
    bias = TableBias(table, axis, axis, points)
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    args = q, k, v, bias, 1.0, 0.0
    chosen = dispatch.choose('op', DEFORMABLE_BACKENDS, None, *args)
    assert chosen is triton_deformable.deformable_attention

    op, leaves = neighborhood_case('itself only')
    args = *(x.float() for x in leaves), 1, 1.0, 0.0
    chosen = dispatch.choose('op', NEIGHBORHOOD_BACKENDS, None, *args)
    assert chosen is triton_neighborhood.neighborhood_attention


@pytest.mark.parametrize(
    'case', [deformable_case('two groups'), neighborhood_case('tiles')]
)
def test_compile_into_one_graph(case):
    op, leaves = case
    compiled = torch.compile(op, fullgraph=True, backend='aot_eager')
    dtypes = [torch.float32] * len(leaves)
    eager = run(op, leaves, 'triton', dtypes)
    for a, b in zip(run(compiled, leaves, 'triton', dtypes), eager):
        torch.testing.assert_close(a, b)


def test_operators_describe_their_results():
    """What torch.compile is told of shapes and strides is true."""
    checks = 'test_schema', 'test_faketensor', 'test_autograd_registration'
    _, leaves = deformable_case('two groups')
    q, k, v, table, points = (x.float().detach() for x in leaves)
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    y, x = (torch.linspace(-1, 1, n, device=DEVICE) for n in (3, 7))
    tensors = [t.requires_grad_() for t in (q, k, v, table, points)]
    args = *tensors[:4], y, x, points
    torch.library.opcheck(
        triton_deformable._attention.registered,
        (*args, 0.5),
        test_utils=checks,
    )
    out, lse = (t.detach() for t in triton_deformable._attention(*args, 0.5))
    args = [t.detach() for t in args]
    torch.library.opcheck(
        triton_deformable._attention_backward.registered,
        (torch.ones_like(out), *args, out, lse, 0.5, True, True),
        test_utils=checks[:2],
    )

    _, leaves = neighborhood_case('itself only')
    args = [x.float().detach().requires_grad_() for x in leaves]
    torch.library.opcheck(
        triton_neighborhood._attention.registered,
        (*args, 1, 0.5),
        test_utils=checks,
    )
    out, lse = triton_neighborhood._attention(*args, 1, 0.5)
    args = [t.detach() for t in (torch.ones_like(out), *args, out, lse)]
    torch.library.opcheck(
        triton_neighborhood._attention_backward.registered,
        (*args, 1, 0.5, True),
        test_utils=checks[:2],
    )

    x, points = (t.float().requires_grad_() for t in sampling_case())
    torch.library.opcheck(
        triton_sampling._sample.registered, (x, points), test_utils=checks
    )
    args = [t.detach() for t in (torch.ones(2, 4, 5, 6), x, points)]
    torch.library.opcheck(
        triton_sampling._sample_backward.registered,
        (*args, True, True),
        test_utils=checks[:2],
    )

    x, weight, bias = (
        torch.randn(n, 5, requires_grad=True) for n in (3, 1, 1)
    )
    args = x, weight[0].detach(), bias[0].detach(), 1e-5, torch.bfloat16
    torch.library.opcheck(
        triton_layer_norm._layer_norm.registered, args, test_utils=checks
    )
    out, *moments = (t.detach() for t in triton_layer_norm._layer_norm(*args))
    args = [t.detach() for t in (out, *args[:3], *moments)]
    torch.library.opcheck(
        triton_layer_norm._layer_norm_backward.registered,
        (*args, True, True, True),
        test_utils=checks[:2],
    )
