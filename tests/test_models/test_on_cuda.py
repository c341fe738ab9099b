# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What models do on a GPU, without one: see tests/helpers/fake_cuda.py."""

import inspect
from contextlib import suppress

import pytest
import torch
from fake_cuda import Recorded, fake_cuda, gradients
from versions import needs_torch

from mmdat.models import DAT
from mmdat.ops.position_bias import TableBias
from mmdat.ops.sdpa import deformable as sdpa
from mmdat.ops.triton import common, probe

# Before, filling a tensor without memory asks for a driver.
pytestmark = needs_torch('2.11')


@pytest.fixture(params=['triton', 'sdpa'])
def backend(request, monkeypatch):
    """Whether Triton's kernels passed their trial."""
    works = request.param == 'triton'
    monkeypatch.setattr(
        common, 'declines', lambda x: None if works else 'not here.'
    )
    monkeypatch.setattr(common, 'declines_type', lambda x, dtype: None)
    monkeypatch.setattr(probe, 'failure', lambda *_: None)


def train(images, **settings):
    """A recorded step of training."""
    with torch.device('cuda'):
        model = DAT(**settings).train()
    with Recorded() as forward, torch.autocast('cuda', torch.bfloat16):
        loss = sum(level.float().sum() for level in model(images))
    with Recorded() as backward:
        parameters = list(model.parameters())
        grads = gradients(loss, parameters)
    assert [g.shape for g in grads] == [p.shape for p in parameters]
    return forward, backward


SMALL = dict(embed_dims=[16] * 4, num_heads=2, mlp_ratio=2)
BIASES = ['table', 'fixed', 'log_continuous', 'depthwise_conv']


def settings(family, kinds):
    """A model with these kinds of attention, D with every bias."""
    return dict(
        arch=dict(
            SMALL,
            depths=len(kinds[0]),
            family=family,
            attentions=kinds,
        ),
        img_size=64,
        offset_range=2 if family == 'dat' else -1,
        drop_path_rate=0.1,
        position_bias=BIASES,
    )


MODELS = {
    f'{family} {" ".join(kinds)}': settings(family, kinds)
    for family in ('dat', 'dat_pp')
    for kinds in (['LS', 'NX', 'PQ', 'ED'], ['D'] * 4)
}


@pytest.mark.parametrize('name', list(MODELS))
def test_no_step_waits_for_the_host(name, backend):
    with fake_cuda():
        images = torch.empty(2, 3, 72, 100, device='cuda')
        forward, backward = train(images, **MODELS[name])
    assert forward.counts['convolution'] > 0 < backward.counts['mm']
    assert not forward.waits
    assert not backward.waits


def test_the_recorder_sees_who_waits():
    with fake_cuda(), Recorded() as seen:
        x = torch.ones(3, device='cuda')
        for wait in (
            lambda: x.new_tensor([1, 2]),
            lambda: torch.tensor([1.0, 2.0], device='cuda'),
            lambda: torch.ones(3).to('cuda'),
            lambda: x[torch.tensor([0, 2])],
            lambda: x[x > 0],
            lambda: x.sum().item(),
        ):
            before = len(seen.waits)
            with suppress(RuntimeError):  # fake tensors have no values
                wait()
            assert len(seen.waits) > before, inspect.getsource(wait)
        before = len(seen.waits)
        (x * 2 + torch.arange(3, device='cuda')).clamp(max=1)
        assert len(seen.waits) == before


LIMITS = {'dat_t': 400, 'dat_pp_t': 600}


@pytest.mark.parametrize('arch', list(LIMITS))
@pytest.mark.parametrize('backend', ['triton'], indirect=True)
def test_a_pass_is_few_operations(arch, backend):
    """What a GPU is asked for in a forward pass of training, in bfloat16.

    All operations that compute or copy count, casts of activations too.
    Views do not; an attention counts once, fused by PyTorch or by Triton.
    What depends on sizes alone was made by the pass before.
    """
    with fake_cuda():
        images = torch.empty(2, 3, 800, 1344, device='cuda')
        with torch.device('cuda'):
            model = DAT(arch).train()
        with torch.autocast('cuda', torch.bfloat16):
            model(images)
        with Recorded() as seen, torch.autocast('cuda', torch.bfloat16):
            model(images)
    everything = sum(seen.counts.values())
    assert seen.counts['addmm'] > 50 > seen.counts['table_attention'] > 3
    assert everything < LIMITS[arch]
    assert seen.weight_casts < 10  # those of the blocks are cast together


@pytest.mark.parametrize('training', [False, True])
def test_plain_attention_is_a_few_chunks(training):
    """Of stage 3 at 2x3x800x1344; training makes them again, and keeps none.

    12 heads of 50 x 84 queries on as many keys.
    """
    batch, heads, dim, (height, width) = 2, 12, 32, (50, 84)
    with fake_cuda():
        q, k, v = (
            torch.empty(
                *(batch, heads, height * width, dim),
                dtype=torch.bfloat16,
                device='cuda',
                requires_grad=training,
            )
            for _ in range(3)
        )
        bias = TableBias(
            torch.empty(heads, 27, 27, device='cuda'),
            *(torch.empty(n, device='cuda') for n in (height, width)),
            torch.empty(batch, 3, height, width, 2, device='cuda'),
        )
        kept = []

        def pack(x):
            kept.append(x.numel())
            return x

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with Recorded() as forward, hooks:
            out = sdpa.deformable_attention(q, k, v, bias, dim**-0.5, 0.0)
        attention = '_scaled_dot_product_efficient_attention'
        assert 1 < forward.counts[attention] < 20
        assert sum(forward.counts.values()) < 400
        if training:
            # No scores: there are 423 million of them.
            assert max(kept, default=0) <= q.numel()
            with Recorded() as backward:
                gradients(out.sum(), [q, k, v])
            assert backward.counts[attention] == forward.counts[attention]
