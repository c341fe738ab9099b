# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""An MLP in pieces is the MLP."""

import copy

import pytest
import torch
import torch.nn.functional as F
from agreement import UGLY_SIZES
from torch import library
from torch.utils.flop_counter import FlopCounterMode
from versions import needs_torch

from mmdat.models.mlp import MLP
from mmdat.ops.backends import mlp_pieces, pieces
from mmdat.ops.mlp import conv_mlp, mlp
from mmdat.ops.norm import Norm

pytestmark = needs_torch('2.4')


def plain(x, weight1, bias1, weight2, bias2):
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def inputs(size, dtype, dim=5, hidden=12):
    torch.manual_seed(0)
    shapes = [(2, *size, dim), (hidden, dim), (hidden,), (7, hidden), (7,)]
    return [
        torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes
    ]


def gradients(run, tensors):
    out = run(*tensors)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype)
    return out, *torch.autograd.grad(
        (out * weight.view(out.shape)).sum(), tensors
    )


@pytest.mark.parametrize('piece', [1, 3, 2048])
@pytest.mark.parametrize('size', UGLY_SIZES)
def test_agrees_in_float64(size, piece, monkeypatch):
    monkeypatch.setattr(mlp_pieces, 'PIECE_ROWS', piece)
    tensors = inputs(size, torch.float64)
    assert pieces.declines(*tensors[:2]) is None
    for a, b in zip(gradients(mlp, tensors), gradients(plain, tensors)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(mlp(*tensors), plain(*tensors))


@pytest.mark.parametrize('size', UGLY_SIZES)
def test_float32_is_as_near_as_plain(size, monkeypatch):
    monkeypatch.setattr(mlp_pieces, 'PIECE_ROWS', 20)
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


def test_pieces_cover_all_rows_once():
    for rows in (1, 2047, 2048, 2049, 3073, 10_000):
        pieces = mlp_pieces._pieces(rows)
        assert [i for p in pieces for i in range(rows)[p]] == list(range(rows))
        assert max(p.stop - p.start for p in pieces) <= 3072


def test_maps_of_other_layouts():
    x, *weights = inputs((4, 3), torch.float64)
    x = x.detach().permute(0, 2, 1, 3)
    torch.testing.assert_close(mlp(x, *weights), plain(x, *weights))
    torch.testing.assert_close(
        mlp(x[:, ::2], *weights), plain(x[:, ::2], *weights)
    )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_other_types_decline(dtype):
    tensors = [t.detach() for t in inputs((2, 2), dtype)]
    assert 'float32 or float64' in pieces.declines(*tensors[:2])
    torch.testing.assert_close(mlp(*tensors), plain(*tensors))


def test_autocast_declines():
    tensors = inputs((2, 2), torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        assert 'autocast' in pieces.declines(*tensors[:2])
        assert mlp(*tensors).dtype == torch.bfloat16


def test_traced_graphs_show_the_layers():
    module, x = MLP(4, 8, conv=False).eval(), torch.randn(1, 3, 2, 4)
    with torch.no_grad():
        traced = torch.jit.trace(module, x)
        assert 'mmdat::' not in str(traced.inlined_graph)
        torch.testing.assert_close(traced(x), module(x))
        exported = torch.export.export(module, (x,))
        assert 'mmdat' not in str(exported.graph)
        torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.parametrize('train', [False, True])
def test_operations_are_counted(train):
    def count(run):
        tensors = inputs((5, 3), torch.float32)
        counter = FlopCounterMode(display=False)
        with counter, torch.set_grad_enabled(train):
            out = run(*tensors)
            if train:
                out.sum().backward()
        return counter.get_total_flops()

    assert count(mlp) == count(plain) > 0


def test_registered_as_torch_wants_it():
    tensors = inputs((3, 2), torch.float32)
    library.opcheck(torch.ops.mmdat.mlp.default, tuple(tensors))
    x, weight1, bias1, weight2, bias2 = tensors
    layer = [torch.randn(5, requires_grad=True) for _ in range(2)]
    back = x, weight1, bias1, weight2[:5], bias2[:5], *layer, 0.1, True
    library.opcheck(torch.ops.mmdat.mlp.default, back)


def test_compiles_to_the_same():
    module = MLP(4, 8, conv=False)
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


def test_no_second_derivatives():
    x, *weights = inputs((2, 2), torch.float64)
    (grad,) = torch.autograd.grad(
        mlp(x, *weights).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


@pytest.mark.parametrize('piece', [1, 10, 30, 4096])
@pytest.mark.parametrize('size', UGLY_SIZES)
def test_with_a_convolution(size, piece, monkeypatch):
    monkeypatch.setattr(mlp_pieces, 'CONV_PIECE_ROWS', piece)
    torch.manual_seed(0)
    module, x = (
        MLP(5, 12, conv=True).double(),
        torch.randn(3, *size, 5).double(),
    )
    expected = module.fc1(x)
    expected = expected + module.dwconv(expected)
    expected = module.fc2(F.gelu(expected))
    calls = []
    run = mlp_pieces.conv_mlp
    monkeypatch.setattr(
        mlp_pieces, 'conv_mlp', lambda *args: calls.append(1) or run(*args)
    )
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=0)
    assert calls
    torch.testing.assert_close(module(x), expected, atol=1e-12, rtol=0)
    assert len(calls) == 2


def conv_inputs(size, dtype, dim=5, hidden=12):
    torch.manual_seed(0)
    shapes = [(2, *size, dim), (hidden, dim), (hidden,), (7, hidden), (7,)]
    shapes += [(hidden, 1, 3, 3), (hidden,)]
    return [
        torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes
    ]


def plain_conv(x, weight1, bias1, weight2, bias2, conv_weight, conv_bias):
    x = F.linear(x, weight1, bias1).permute(0, 3, 1, 2)
    x = x + F.conv2d(x, conv_weight, conv_bias, padding=1, groups=len(weight1))
    return F.linear(F.gelu(x.permute(0, 2, 3, 1)), weight2, bias2)


@pytest.mark.parametrize('piece', [1, 10, 30, 4096])
@pytest.mark.parametrize('size', UGLY_SIZES)
def test_gradients_with_a_convolution(size, piece, monkeypatch):
    monkeypatch.setattr(mlp_pieces, 'CONV_PIECE_ROWS', piece)
    tensors = conv_inputs(size, torch.float64)
    ours, wanted = (gradients(f, tensors) for f in (conv_mlp, plain_conv))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('with_norm', [False, True])
@pytest.mark.parametrize('run', [mlp, conv_mlp])
@pytest.mark.parametrize('piece', [20, 4096])
def test_norm_and_sum(piece, run, with_norm, residual, monkeypatch):
    monkeypatch.setattr(mlp_pieces, 'PIECE_ROWS', piece)
    monkeypatch.setattr(mlp_pieces, 'CONV_PIECE_ROWS', piece)
    x, weight1, bias1, weight2, bias2, *conv = conv_inputs(
        (6, 7), torch.float64
    )
    weights = weight1, bias1, weight2[:5], bias2[:5]
    weights += tuple(conv) if run is conv_mlp else ()
    tensors = [t.detach().requires_grad_() for t in (x, *weights)]
    if with_norm:
        tensors += [torch.randn(5).double().requires_grad_() for _ in range(2)]

    def split(weights):
        layer = weights[len(weights) - 2 * with_norm :]
        norm = Norm(*layer, 0.1) if with_norm else None
        return weights[: len(weights) - len(layer)], norm

    def by_hand(x, *weights):
        weights, norm = split(weights)
        out = F.layer_norm(x, (5,), *norm[:2], eps=0.1) if norm else x
        out = (plain_conv if run is conv_mlp else plain)(out, *weights)
        return x + out if residual else out

    def ours(x, *weights):
        weights, norm = split(weights)
        return run(x, *weights, norm=norm, residual=residual)

    found = gradients(ours, tensors), gradients(by_hand, tensors)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(ours(*tensors), by_hand(*tensors))


def test_frozen_weights_get_no_gradient():
    x, *weights = conv_inputs((3, 4), torch.float64)
    weights = [w.detach() for w in weights]
    out = conv_mlp(x, *weights)
    out.sum().backward()
    (wanted,) = torch.autograd.grad(plain_conv(x, *weights).sum(), x)
    torch.testing.assert_close(x.grad, wanted)
    assert not any(w.requires_grad for w in weights)


def test_of_the_activations_only_the_map_is_kept():
    tensors, kept = conv_inputs((8, 9), torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        conv_mlp(*tensors)
    own = {t.data_ptr() for t in tensors}
    assert kept and all(t.data_ptr() in own for t in kept)


def test_with_a_convolution_in_a_graph():
    module, x = MLP(4, 8, conv=True).eval(), torch.randn(1, 3, 2, 4)
    with torch.no_grad():
        traced = torch.jit.trace(module, x)
        assert str(traced.inlined_graph).count('convolution') == 1
        torch.testing.assert_close(traced(x[:, :2]), module(x[:, :2]))
