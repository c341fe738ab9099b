# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the seam does under autocast and with dropped branches."""

import copy

import pytest
import torch
from torch import nn
from versions import needs_torch

from mmdat.models import DAT, fused
from mmdat.models.block import Block
from mmdat.models.layers import DropPath
from mmdat.ops import narrow_weights

pytestmark = needs_torch('2.4')
KINDS = ['LS', 'NX', 'DQ', 'PE']


def make(**settings):
    torch.manual_seed(0)
    arch = dict(
        embed_dims=[16] * 4,
        depths=2,
        num_heads=2,
        mlp_ratio=2,
        attentions=KINDS,
    )
    model = DAT({**arch, **settings}, img_size=64)
    for x in model.parameters():  # also those that start at zero
        x.data += 0.05 * torch.randn_like(x)
    return model.train()


def step(model, images, dtype=torch.bfloat16):
    """Outputs and gradients of a pass under autocast."""
    torch.manual_seed(7)
    model.zero_grad()
    with torch.autocast('cpu', dtype):
        out = model(images)
    sum(x.float().square().sum() for x in out).backward()
    return [*out, *(x.grad for x in model.parameters())]


@pytest.fixture
def casts(monkeypatch):
    """How many layers have had their weights cast together."""
    counts = []
    narrow = narrow_weights.narrow

    def counted(layers, dtype):
        counts.append(len(layers))
        return narrow(layers, dtype)

    monkeypatch.setattr(narrow_weights, 'narrow', counted)
    return counts


@pytest.mark.parametrize('with_cp', [False, True])
def test_weights_cast_together_are_those_autocast_casts(with_cp, casts):
    images = torch.randn(2, 3, 40, 56)
    model = make()
    for stage in model.stages:
        stage.with_cp = with_cp
    got = step(model, images)
    # The linear layers and convolutions of each block that call the seam.
    once = [6, 6, 6, 4, 8, 4, 4, 4]
    assert casts[:8] == once
    assert sorted(casts) == sorted(once * (1 + with_cp))
    casts.clear()
    with fused.disabled():
        wanted = step(model, images)
    assert not casts
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_frozen_weights_get_no_gradient(casts):
    model, images = make(), torch.randn(1, 3, 40, 56)
    block = model.stages[0].blocks[0]
    block.mlp.requires_grad_(False)
    block.attn.proj_qkv.bias.requires_grad_(False)
    got = step(model, images)
    with fused.disabled():
        wanted = step(model, images)
    assert len(casts) == 8
    for a, b in zip(got, wanted, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert block.mlp.fc1.weight.grad is None
    assert block.attn.proj_qkv.weight.grad is not None


def test_inference_casts_them_too(casts):
    model, images = make().eval(), torch.randn(1, 3, 40, 56)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        got = model(images)
        with fused.disabled():
            wanted = model(images)
    assert len(casts) == 8
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_second_derivatives_go_through_the_casts():
    layer = nn.Linear(3, 4)
    with torch.enable_grad():
        ((weight, bias),) = narrow_weights.narrow(
            [layer], torch.bfloat16
        ).values()
        out = weight.float().square().sum() + bias.float().sum()
        (first,) = torch.autograd.grad(out, layer.weight, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), layer.weight)
    torch.testing.assert_close(second, torch.full_like(second, 2))


class Seen(nn.Linear):
    """A layer of somebody else's."""

    def forward(self, x):
        return super().forward(x) * 2


def test_layers_that_others_changed_run_as_they_are(casts):
    model, images = make(), torch.randn(1, 3, 40, 56)
    block = model.stages[0].blocks[0]
    seen = []
    block.mlp.fc1.register_forward_hook(lambda *_: seen.append('hook'))
    block.attn.proj_out = Seen(16, 16)
    got = step(model, images)
    assert casts[0] == 4  # all but these two
    with fused.disabled():
        wanted = step(model, images)
    assert len(seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_nothing_is_cast_without_autocast(casts):
    model, images = make(), torch.randn(1, 3, 40, 56)
    model(images)
    model.double()(images.double())
    model.bfloat16()(images.bfloat16())
    assert not casts


# ----------------------------------------------------------- dropped branches


@pytest.mark.parametrize('rate', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_branch_is_dropped_and_added_as_by_the_layer(rate, training, dtype):
    drop = DropPath(rate).train(training)
    x = torch.randn(64, 2, 3, 4, requires_grad=True)
    out = torch.randn(64, 2, 3, 4).to(dtype).requires_grad_()

    def run():
        torch.manual_seed(3)
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype != x.dtype):
            total = fused.add(x, out, drop)
        slope = torch.arange(total.numel()).view(total.shape).sin()
        return total, *torch.autograd.grad(total, (x, out), slope)

    got = run()
    with fused.disabled():
        wanted = run()
    assert [t.dtype for t in got] == [t.dtype for t in wanted]
    exact = dtype == torch.float32
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-6 if exact else 1e-2, atol=1e-6 if exact else 1e-2
        )
    kept = (got[0] != x).flatten(1).any(1)
    if training and 0 < rate < 1:  # whole samples, some of them
        assert 0 < kept.sum() < 64
        torch.testing.assert_close(got[0][~kept], x[~kept])
        torch.testing.assert_close(
            got[0][kept], (x + out.float() / (1 - rate))[kept],
            rtol=1e-2, atol=1e-2,
        )  # fmt: skip
    else:
        assert kept.all() == (not training or rate == 0)


def test_dropping_and_adding_is_one_operation(monkeypatch):
    calls = []
    addcmul = torch.addcmul
    monkeypatch.setattr(
        torch, 'addcmul', lambda *a, **k: calls.append(1) or addcmul(*a, **k)
    )
    x = torch.randn(4, 2, 2, 3)
    drop = DropPath(0.5).train()
    fused.add(x, x, drop)
    assert len(calls) == 1
    drop.register_forward_hook(lambda *_: None)  # somebody looks
    fused.add(x, x, drop)
    assert len(calls) == 1


def test_blocks_drop_their_branches_by_the_seam():
    model = make()
    block = copy.deepcopy(model.stages[0].blocks[0])
    assert type(block) is Block
    block.drop_path.rate = 0.5
    x = torch.randn(16, 8, 8, 16)

    def run():
        torch.manual_seed(1)
        with torch.autocast('cpu', torch.bfloat16):
            return block(x)

    got = run()
    with fused.disabled():
        wanted = run()
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=2e-2)
