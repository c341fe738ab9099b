# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
import torch.nn.functional as F

from mmdat.ops import deformable_attention
from mmdat.ops.position_bias import DenseBias, LogBias, TableBias
from mmdat.ops.sdpa import deformable as sdpa

# Sides, heads and groups all differ, so that no mix-up goes unseen.
BATCH, HEADS, GROUPS, DIM = 2, 4, 2, 5
QUERIES, KEYS = (3, 7), (2, 5)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def inputs():
    torch.manual_seed(0)
    return (
        random(BATCH, *QUERIES, HEADS, DIM),
        random(BATCH, *KEYS, HEADS, DIM),
        random(BATCH, *KEYS, HEADS, DIM),
    )


def log_mlp(weight, bias, out):
    def run(x):
        hidden = F.linear(x, weight.to(x), bias.to(x)).relu()
        return F.linear(hidden, out.to(x))

    return run


def bias_of(kind):
    torch.manual_seed(1)
    axes = [torch.linspace(-1, 1, n).double() for n in QUERIES]
    points = random(BATCH, GROUPS, *KEYS, 2) * 0.6
    if kind == 'table':
        return TableBias(random(HEADS, 5, 9), *axes, points)
    if kind == 'dense':
        return DenseBias(random(HEADS, 21, 10))
    if kind == 'log':
        hidden = (random(32, 2), random(32))
        out = random(HEADS // GROUPS, 32)
        return LogBias(log_mlp(*hidden, out), *axes, points)
    return None


KINDS = ['table', 'dense', 'log', 'none']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('chunk', [1, 2**30])
def test_sdpa_equals_reference(kind, chunk, monkeypatch):
    monkeypatch.setattr(sdpa, 'CHUNK_SCORES', chunk)
    # The smallest chunk is 64 queries: 21 fit, so make more of them.
    q, k, v = inputs()
    bias = bias_of(kind)
    if chunk == 1:
        q = random(BATCH, 13, 17, HEADS, DIM)
        axes = [torch.linspace(-1, 1, n).double() for n in (13, 17)]
        if kind in ('table', 'log'):
            bias = bias._replace(query_y=axes[0], query_x=axes[1])
        elif kind == 'dense':
            bias = DenseBias(random(HEADS, 13 * 17, 10))
    torch.testing.assert_close(
        deformable_attention(q, k, v, bias, backend='sdpa'),
        deformable_attention(q, k, v, bias, backend='reference'),
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
@pytest.mark.parametrize('kind', ['table', 'dense', 'log'])
def test_gradients(backend, kind):
    bias = bias_of(kind)
    tensors = [t for t in bias if isinstance(t, torch.Tensor) and t.ndim > 1]

    def run(q, k, v, *leaves):
        names = [
            name
            for name, value in bias._asdict().items()
            if isinstance(value, torch.Tensor) and value.ndim > 1
        ]
        moved = bias._replace(**dict(zip(names, leaves, strict=True)))
        return deformable_attention(q, k, v, moved, backend=backend)

    leaves = [
        t.detach().clone().requires_grad_() for t in (*inputs(), *tensors)
    ]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_scale_is_that_of_the_head_dimension():
    q, k, v = inputs()
    torch.testing.assert_close(
        deformable_attention(q, k, v),
        deformable_attention(q, k, v, scale=DIM**-0.5),
    )
    assert not torch.allclose(
        deformable_attention(q, k, v), deformable_attention(q, k, v, scale=1)
    )


@pytest.mark.parametrize('backend', ['sdpa', 'reference'])
def test_dropout_drops_and_keeps_the_mean(backend):
    q, k, _ = inputs()
    ones = torch.ones(BATCH, *KEYS, HEADS, 500).double()
    out = deformable_attention(
        q, k, ones, bias_of('table'), scale=1, dropout=0.5, backend=backend
    )
    assert out.std() > 0.1
    assert abs(out.mean() - 1) < 0.15


def test_bias_stays_exact_under_autocast():
    """Displacements rounded to 8 bits would read other cells of the table."""
    q = torch.zeros(1, 1, 200, 1, 8)
    k = torch.zeros(1, 1, 3, 1, 8)
    v = torch.eye(3, 8)[None, None, :, None]
    table = torch.zeros(1, 1, 399)
    table[..., ::2] = 4
    points = torch.tensor([[0.0, -0.9], [0.0, 0.13], [0.0, 0.77]])
    bias = TableBias(
        table,
        torch.zeros(1),
        torch.arange(200) / 199 * 2 - 1,
        points[None, None, None],
    )
    exact = deformable_attention(q, k, v, bias)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = deformable_attention(
            q.bfloat16(), k.bfloat16(), v.bfloat16(), bias
        )
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.02
