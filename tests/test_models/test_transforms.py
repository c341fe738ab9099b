# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""torch.func, forward-mode AD, second derivatives and the meta device."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from versions import needs_torch

from mmdat.models import DAT

SMALL = dict(embed_dims=[8] * 4, depths=[1] * 4, num_heads=[2] * 4)
MODELS = {
    'NDND': dict(family='dat_pp', neighborhood_size=3),
    'LSXP': dict(family='dat', window_size=3),
    'EQFN': dict(family='dat_pp', window_size=3, neighborhood_size=3),
    'DDDD': dict(
        family='dat',
        position_bias=['log_continuous', 'none', 'fixed', 'depthwise_conv'],
    ),
}


def build(letters):
    torch.manual_seed(0)
    settings = dict(MODELS[letters])
    arch = dict(SMALL, family=settings.pop('family'))
    return DAT(arch, attentions=list(letters), **settings).double().eval()


def loss_of(model):
    def loss(parameters, x):
        outs = functional_call(model, parameters, (x,))
        return sum(out.square().mean() for out in outs)

    return loss


def eager(model, x):
    loss = sum(out.square().mean() for out in model(x))
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize('letters', MODELS)
def test_gradients_of_single_samples(letters):
    model = build(letters)
    parameters = dict(model.named_parameters())
    x = torch.rand(2, 3, 40, 56, dtype=torch.float64)
    found = vmap(grad(loss_of(model)), (None, 0))(parameters, x[:, None])
    for i in range(2):
        wanted = eager(model, x[i : i + 1])
        for ours, theirs in zip(found.values(), wanted, strict=True):
            torch.testing.assert_close(ours[i], theirs, atol=1e-9, rtol=1e-7)


@needs_torch('2.4')
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('letters', MODELS)
def test_several_gradients_at_once(letters, autocast):
    """Autograd batches them itself, and ``torch.vmap`` does."""
    model = build(letters)
    x = torch.rand(2, 3, 40, 56, dtype=torch.float64)
    near = 1e-9
    if autocast:
        model, x, near = model.float(), x.float(), 1e-2
    leaves = [x.requires_grad_(), *model.parameters()]
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        values = model(x)[-1].flatten()[:2].to(x.dtype)
    options = dict(retain_graph=True, allow_unused=True)

    def gradients(weights, **kwargs):
        found = torch.autograd.grad(
            values, leaves, weights, **options, **kwargs
        )
        return [grad for grad in found if grad is not None]

    at_once = gradients(torch.eye(2, dtype=x.dtype), is_grads_batched=True)
    mapped = at_once  # torch.vmap does not go with what autocast recorded
    if not autocast:
        mapped = vmap(gradients)(torch.eye(2, dtype=x.dtype))
    for i, row in enumerate(torch.eye(2, dtype=x.dtype)):
        wanted = gradients(row)
        assert len(wanted) > 20
        size = max(grad.abs().max() for grad in wanted)
        for found in (at_once, mapped):
            for ours, theirs in zip(found, wanted, strict=True):
                assert (ours[i] - theirs).abs().max() <= near * size


@pytest.mark.parametrize('letters', MODELS)
def test_forward_mode(letters):
    model = build(letters)
    parameters = dict(model.named_parameters())
    x = torch.rand(1, 3, 40, 56, dtype=torch.float64)
    direction = torch.rand_like(x)
    loss = loss_of(model)
    _, slope = jvp(lambda x: loss(parameters, x), (x,), (direction,))
    (back,) = torch.autograd.grad(loss(parameters, x.requires_grad_()), [x])
    torch.testing.assert_close(slope, (back * direction).sum())


@needs_torch('2.4')
@pytest.mark.parametrize('letters', ['LSLX', 'NNLX'])
def test_second_derivatives(letters):
    torch.manual_seed(0)
    model = DAT(
        SMALL, attentions=list(letters), window_size=3, neighborhood_size=3
    ).double()
    x = torch.rand(1, 3, 40, 56, dtype=torch.float64)

    def penalty(x):
        loss = sum(out.square().mean() for out in model(x))
        (slope,) = torch.autograd.grad(loss, [x], create_graph=True)
        return slope.square().sum()

    (found,) = torch.autograd.grad(penalty(x.requires_grad_()), [x])
    step = torch.randn_like(x)
    with torch.no_grad():
        up, down = x + 1e-4 * step, x - 1e-4 * step
    numeric = penalty(up.requires_grad_()) - penalty(down.requires_grad_())
    torch.testing.assert_close(
        (found * step).sum(), numeric.detach() / 2e-4, atol=0, rtol=1e-4
    )


@pytest.mark.parametrize('letters', ['NDND', 'DDDD'])
def test_second_derivatives_of_sampling(letters):
    """torch.func has them; autograd alone refuses."""
    model = build(letters)
    parameters = dict(model.named_parameters())
    loss = loss_of(model)
    x = torch.rand(1, 3, 40, 56, dtype=torch.float64)

    def penalty(x):
        return grad(lambda x: loss(parameters, x))(x).square().sum()

    assert grad(penalty)(x).isfinite().all()
    outs = model(x.requires_grad_())
    (slope,) = torch.autograd.grad(
        sum(out.square().mean() for out in outs), [x], create_graph=True
    )
    with pytest.raises(RuntimeError, match='differentiate twice|derivative'):
        slope.square().sum().backward()


@pytest.mark.parametrize('letters', MODELS)
def test_meta_device(letters):
    model = copy.deepcopy(build(letters)).to('meta')
    x = torch.empty(1, 3, 40, 56, dtype=torch.float64, device='meta')
    assert [tuple(out.shape) for out in model(x)] == [
        (1, 8, 10, 14),
        (1, 8, 5, 7),
        (1, 8, 3, 4),
        (1, 8, 2, 2),
    ]
    sum(out.sum() for out in model(x)).backward()
