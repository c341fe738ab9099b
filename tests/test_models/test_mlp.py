# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Keeping less for the backward pass changes nothing."""

import pytest
import torch
from versions import needs_torch

from mmdat.models.mlp import MLP

pytestmark = needs_torch('2.4')


def results(mlp, x, lean, monkeypatch, dtype=None):
    with monkeypatch.context() as patch:
        if not lean:
            patch.setattr(MLP, '_keeps_less', lambda _: False)
        else:
            assert mlp._keeps_less()
        leaf = x.clone().requires_grad_()
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
            out = mlp(leaf)
        grads = torch.autograd.grad(
            (out.to(x) * x).sum(), (leaf, *mlp.parameters())
        )
    return (out, *grads)


@pytest.mark.parametrize('conv', [False, True])
def test_gradients(conv, monkeypatch):
    torch.manual_seed(0)
    mlp, x = MLP(6, 10, conv).double(), torch.randn(2, 5, 3, 6).double()
    lean = results(mlp, x, True, monkeypatch)
    plain = results(mlp, x, False, monkeypatch)
    for a, b in zip(lean, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize('conv', [False, True])
def test_gradients_under_autocast(conv, monkeypatch):
    """No further from float32 than twice what plain autocast is."""
    torch.manual_seed(0)
    mlp, x = MLP(6, 10, conv), torch.randn(2, 5, 3, 6)
    exact = results(mlp, x, False, monkeypatch)
    plain = results(mlp, x, False, monkeypatch, torch.bfloat16)
    lean = results(mlp, x, True, monkeypatch, torch.bfloat16)
    for a, b, c in zip(lean, plain, exact, strict=True):
        assert a.dtype == b.dtype
        worst = (b.float() - c).abs().max()
        assert (a.float() - c).abs().max() <= 2 * worst + 1e-6


def test_memory_of_the_hidden_map_is_kept_once():
    mlp, x = MLP(6, 50, conv=False), torch.randn(1, 4, 4, 6)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        mlp(x.requires_grad_())
    assert kept.count(16 * 50) == 1


def test_hooks_and_dropout_get_the_plain_way():
    assert MLP(4, 8, conv=False)._keeps_less()
    assert not MLP(4, 8, conv=False, drop_rate=0.1)._keeps_less()
    assert MLP(4, 8, conv=False, drop_rate=0.1).eval()._keeps_less()
    mlp = MLP(4, 8, conv=False)
    mlp.act.register_forward_hook(lambda *_: None)
    assert not mlp._keeps_less()
    with torch.no_grad():
        assert not MLP(4, 8, conv=False)._keeps_less()
