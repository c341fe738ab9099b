# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A norm and an MLP in chunks are the norm and the MLP."""

import copy

import pytest
import torch
import torch.nn.functional as F
from agreement import UGLY_SIZES
from torch import library, nn
from torch.utils.flop_counter import FlopCounterMode
from versions import needs_torch

from mmdat.models import fused
from mmdat.models.mlp import MLP
from mmdat.ops.cpu import fused_mlp

pytestmark = needs_torch('2.4')

EPS = 0.1


def mlp(x, weight, bias, *weights):
    return fused_mlp.mlp(x, (weight, bias, EPS), weights)


def conv_mlp(x, weight, bias, *weights):
    return fused_mlp.conv_mlp(x, (weight, bias, EPS), weights)


def plain(x, weight, bias, weight1, bias1, weight2, bias2, *conv):
    x = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    x = F.linear(x, weight1, bias1)
    if conv:
        x = x.permute(0, 3, 1, 2)
        x = x + F.conv2d(x, *conv, padding=1, groups=len(weight1))
        x = x.permute(0, 2, 3, 1)
    return F.linear(F.gelu(x), weight2, bias2)


def inputs(size, dtype, dim=5, hidden=12, conv=False):
    torch.manual_seed(0)
    shapes = [(2, *size, dim), (dim,), (dim,)]
    shapes += [(hidden, dim), (hidden,), (dim, hidden), (dim,)]
    shapes += [(hidden, 1, 3, 3), (hidden,)] * conv
    return [
        torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes
    ]


class Branch(nn.Module):
    """A norm and an MLP, in the way that a block runs them."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.norm = nn.LayerNorm(args[0])
        self.mlp = MLP(*args, **kwargs)

    def forward(self, x):
        piece = fused._piece(self.norm, self.mlp, x)
        if piece is None:
            return self.mlp(self.norm(x))
        norm = self.norm.weight, self.norm.bias, self.norm.eps
        return piece.op(x, norm, piece.weights, piece.settings)


def gradients(run, tensors):
    out = run(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype)
    return out, *torch.autograd.grad(
        (out * weight.view(out.shape)).sum(), tensors
    )


@pytest.mark.parametrize('chunk', [1, 3, 2048])
@pytest.mark.parametrize('size', UGLY_SIZES)
def test_agrees_in_float64(size, chunk, monkeypatch):
    monkeypatch.setattr(fused_mlp, 'CHUNK_ROWS', chunk)
    tensors = inputs(size, torch.float64)
    for a, b in zip(gradients(mlp, tensors), gradients(plain, tensors)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(mlp(*tensors), plain(*tensors))


@pytest.mark.parametrize('size', UGLY_SIZES)
def test_float32_is_as_near_as_plain(size, monkeypatch):
    monkeypatch.setattr(fused_mlp, 'CHUNK_ROWS', 20)
    tensors = inputs(size, torch.float32, 32, 128)
    exact = gradients(
        plain, [t.detach().double().requires_grad_() for t in tensors]
    )
    ours, theirs = gradients(mlp, tensors), gradients(plain, tensors)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        room = 1e-6 * c.abs().max()
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + room


def test_gradcheck():
    assert torch.autograd.gradcheck(mlp, inputs((3, 2), torch.float64))


def test_chunks_cover_all_rows_once():
    for rows in (1, 2047, 2048, 2049, 3073, 10_000):
        chunks = [c.rows for c in fused_mlp._chunks(torch.empty(1, rows, 2))]
        assert [i for c in chunks for i in range(rows)[c]] == list(range(rows))
        assert max(c.stop - c.start for c in chunks) <= 3072


def test_maps_of_other_layouts():
    x, *weights = inputs((4, 3), torch.float64)
    x = x.detach().permute(0, 2, 1, 3)
    torch.testing.assert_close(mlp(x, *weights), plain(x, *weights))
    torch.testing.assert_close(
        mlp(x[:, ::2], *weights), plain(x[:, ::2], *weights)
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_other_types_run_layer_by_layer(dtype):
    branch = Branch(4, 8, conv=False).to(dtype)
    x = torch.randn(1, 2, 2, 4, dtype=dtype)
    assert fused._piece(branch.norm, branch.mlp, x) is None
    torch.testing.assert_close(branch(x), branch.mlp(branch.norm(x)))


def test_autocast_runs_layer_by_layer():
    branch, x = Branch(4, 8, conv=False), torch.randn(1, 2, 2, 4)
    assert fused._piece(branch.norm, branch.mlp, x) is not None
    with torch.autocast('cpu', torch.bfloat16):
        assert fused._piece(branch.norm, branch.mlp, x) is None
        assert branch(x).dtype == torch.bfloat16


@pytest.mark.parametrize('conv', [False, True])
def test_graphs_show_the_layers(conv):
    module, x = Branch(4, 8, conv=conv).eval(), torch.randn(1, 3, 2, 4)
    with torch.no_grad():
        traced = torch.jit.trace(module, x)
        assert 'mmdat::' not in str(traced.inlined_graph)
        assert str(traced.inlined_graph).count('convolution') == conv
        torch.testing.assert_close(traced(x), module(x))
        torch.testing.assert_close(traced(x[:, :2]), module(x[:, :2]))
        exported = torch.export.export(module, (x,), strict=False)
        assert 'mmdat' not in str(exported.graph)
        torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.parametrize('conv', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_operations_are_counted(train, conv):
    def count(off):
        torch.manual_seed(0)
        branch = Branch(5, 12, conv=conv).train(train)
        x = torch.randn(2, 5, 3, 5, requires_grad=True)
        counter = FlopCounterMode(display=False)
        with counter, torch.set_grad_enabled(train):
            out = branch.mlp(branch.norm(x)) if off else branch(x)
            if train:
                out.sum().backward()
        return counter.get_total_flops()

    assert count(False) == count(True) > 0


def test_registered_as_torch_wants_it():
    tensors = inputs((3, 2), torch.float32)
    library.opcheck(torch.ops.mmdat.mlp.default, (*tensors, EPS, ()))


@pytest.mark.parametrize('conv', [False, True])
def test_compiles_to_the_same(conv):
    module = Branch(4, 8, conv=conv)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    x = torch.randn(1, 3, 2, 4)
    results = []
    for run in (module, compiled):
        leaf = x.clone().requires_grad_()
        out = run(leaf)
        out.square().sum().backward()
        results.append((out, leaf.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('run', [mlp, conv_mlp])
def test_second_derivatives(run, monkeypatch):
    monkeypatch.setattr(fused_mlp, 'CHUNK_ROWS', 2)
    monkeypatch.setattr(fused_mlp, 'CONV_CHUNK_ROWS', 2)
    tensors = inputs((2, 2), torch.float64, 3, 4, conv=run is conv_mlp)
    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize('chunk', [1, 10, 30, 4096])
@pytest.mark.parametrize('size', UGLY_SIZES)
def test_with_a_convolution(size, chunk, monkeypatch):
    monkeypatch.setattr(fused_mlp, 'CONV_CHUNK_ROWS', chunk)
    tensors = inputs(size, torch.float64, conv=True)
    ours, wanted = (gradients(f, tensors) for f in (conv_mlp, plain))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(conv_mlp(*tensors), plain(*tensors))


def test_frozen_weights_get_no_gradient():
    x, *weights = inputs((3, 4), torch.float64, conv=True)
    weights = [w.detach() for w in weights]
    out = conv_mlp(x, *weights)
    out.sum().backward()
    (wanted,) = torch.autograd.grad(plain(x, *weights).sum(), x)
    torch.testing.assert_close(x.grad, wanted)
    assert not any(w.requires_grad for w in weights)


@pytest.mark.parametrize('run', [mlp, conv_mlp])
def test_of_the_activations_only_the_map_is_kept(run):
    tensors, kept = inputs((8, 9), torch.float32, conv=run is conv_mlp), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        run(*tensors)
    own = {t.data_ptr() for t in tensors}
    assert kept and all(t.data_ptr() in own for t in kept)
