# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Running layers as one, and keeping less of them, changes nothing."""

import pytest
import torch
from versions import needs_torch

from mmdat.models import fused
from mmdat.models.mlp import MLP
from mmdat.ops.cpu import fused_mlp
from mmdat.ops.gelu_linear import gelu_linear

pytestmark = needs_torch('2.4')


def layer_by_layer(mlp, x):
    x = mlp.fc1(x)
    if mlp.dwconv is not None:
        x = x + mlp.dwconv(x)
    return mlp.fc2(mlp.act(x))


def in_a_block(mlp, x):
    """The MLP after a norm, in one piece where it may be."""
    norm = torch.nn.LayerNorm(x.shape[-1])
    piece = fused._piece(norm, mlp, x)
    if piece is None:
        return mlp(norm(x))
    layer = norm.weight, norm.bias, norm.eps
    return piece.op(x, layer, piece.weights, piece.settings)


def results(run, mlp, x, dtype=None):
    leaf = x.clone().requires_grad_()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        out = run(mlp, leaf)
    grads = torch.autograd.grad(
        (out.to(x) * x).sum(), (leaf, *mlp.parameters())
    )
    return (out, *grads)


@pytest.mark.parametrize('conv', [False, True])
def test_gradients(conv):
    torch.manual_seed(0)
    mlp, x = MLP(6, 10, conv).double(), torch.randn(2, 5, 3, 6).double()
    lean = results(MLP.__call__, mlp, x)
    plain = results(layer_by_layer, mlp, x)
    for a, b in zip(lean, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize('conv', [False, True])
def test_gradients_under_autocast(conv):
    """No further from float32 than twice what plain autocast is."""
    torch.manual_seed(0)
    mlp, x = MLP(6, 10, conv), torch.randn(2, 5, 3, 6)
    exact = results(layer_by_layer, mlp, x)
    plain = results(layer_by_layer, mlp, x, torch.bfloat16)
    lean = results(MLP.__call__, mlp, x, torch.bfloat16)
    for a, b, c in zip(lean, plain, exact, strict=True):
        assert a.dtype == b.dtype
        worst = (b.float() - c).abs().max()
        assert (a.float() - c).abs().max() <= 2 * worst + 1e-6


@pytest.mark.parametrize(
    'conv, autocast, hidden_maps',
    [(False, False, 0), (False, True, 1), (True, False, 0), (True, True, 2)],
)
def test_memory_of_the_hidden_map(conv, autocast, hidden_maps):
    """Before the GELU and the convolution, or not at all."""
    mlp, x = MLP(6, 50, conv), torch.randn(1, 4, 4, 6)
    kept = set()

    def pack(tensor):
        if tensor.numel() == 16 * 50:
            kept.add(tensor.data_ptr())
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast('cpu', torch.bfloat16, enabled=autocast),
    ):
        in_a_block(mlp, x.requires_grad_())
    assert len(kept) == hidden_maps


@pytest.fixture
def called(monkeypatch):
    """The functions that run several layers as one, when they are called."""
    found = []
    for name in ('mlp', 'conv_mlp'):
        op = getattr(fused_mlp, name)

        def run(*args, name=name, op=op):
            found.append(name)
            return op._forward(*args)

        run.registered = None
        monkeypatch.setattr(op, 'operator', run)

    def run(*args):
        found.append('gelu_linear')
        return gelu_linear(*args)

    monkeypatch.setattr(fused, 'gelu_linear', run)
    return found


@pytest.mark.parametrize('layer', ['fc1', 'dwconv', 'act', 'fc2'])
@pytest.mark.parametrize(
    'hook',
    [
        'register_forward_hook',
        'register_forward_pre_hook',
        'register_full_backward_hook',
        'register_full_backward_pre_hook',
    ],
)
def test_hooks_are_called(layer, hook, called):
    mlp, calls = MLP(4, 8, conv=layer == 'dwconv'), []
    getattr(getattr(mlp, layer), hook)(lambda *_: calls.append(1))
    x = torch.randn(1, 2, 2, 4, requires_grad=True)
    in_a_block(mlp, x).sum().backward()
    assert calls == [1]
    first_half = layer in ('fc1', 'dwconv')
    assert called == (['gelu_linear'] if first_half else [])


def test_other_layers_are_called(called):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    mlp, x = MLP(4, 8, conv=False), torch.randn(1, 2, 2, 4)
    plain = in_a_block(mlp, x)
    fc2 = mlp.fc2
    mlp.fc2 = Doubled(8, 4)
    mlp.fc2.load_state_dict(fc2.state_dict())
    torch.testing.assert_close(in_a_block(mlp, x), 2 * plain)
    assert called == ['mlp']


def test_dropout_is_applied(called):
    mlp, x = MLP(4, 8, conv=False, drop_rate=0.5), torch.randn(1, 9, 9, 4)
    assert (in_a_block(mlp, x) == 0).float().mean() > 0.3
    assert called == []
    assert not (in_a_block(mlp.eval(), x) == 0).any()
    assert called == ['mlp']
