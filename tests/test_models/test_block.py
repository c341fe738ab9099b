# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A block is x + branch(norm(x)), twice, however its branches are run."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmdat.models.arch import resolve_arch
from mmdat.models.block import Block, ConvBlock
from mmdat.models.mlp import MLP

KINDS = {'L': 'dat_t', 'S': 'dat_t', 'D': 'dat_t', 'N': 'dat_pp_t'}


def make_block(kind, layer_scale=0.0, dtype=torch.float64, **rates):
    torch.manual_seed(0)
    arch = resolve_arch(KINDS[kind], dict(window_size=4))
    stage = replace(arch.stages[2], layer_scale_init_value=layer_scale)
    rates = dict(drop_rate=0, attn_drop_rate=0, drop_path_rate=0) | rates
    block = Block(arch, stage, kind, backend=None, **rates).to(dtype)
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):
            for parameter in norm.parameters():
                parameter.normal_()
    return block, torch.randn(2, 6, 9, stage.dim, dtype=dtype)


def by_hand(block, x):
    if block.local_perception is not None:
        x = x + block.local_perception(x)
    out = block.attn(block.norm1(x))
    x = x + block.drop_path(block.layer_scale1(out))
    out = block.mlp(block.norm2(x))
    return x + block.drop_path(block.layer_scale2(out))


def with_gradients(run, block, x):
    leaf = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = run(block, leaf)
    inputs = leaf, *block.parameters()
    return out, *torch.autograd.grad((out * x).sum(), inputs)


@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(drop_path_rate=0.5),
        dict(drop_rate=0.5),
        dict(layer_scale=0.3),
    ],
    ids=str,
)
@pytest.mark.parametrize('kind', KINDS)
def test_sums_and_norms(kind, settings):
    block, x = make_block(kind, **settings)
    for a, b in zip(
        with_gradients(Block.__call__, block, x),
        with_gradients(by_hand, block, x),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    block.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            block(x), by_hand(block, x), atol=1e-10, rtol=1e-10
        )


@pytest.mark.parametrize('rate', [0.0, 0.5])
@pytest.mark.parametrize('layer_scale', [0.0, 0.3])
def test_a_convolution_has_one_branch(layer_scale, rate):
    def by_hand(block, x):
        x = x + block.local_perception(x)
        out = block.mlp(block.norm(block.conv(x)))
        return x + block.drop_path(block.layer_scale(out))

    torch.manual_seed(0)
    arch = resolve_arch('dat_pp_t', {})
    stage = replace(arch.stages[2], layer_scale_init_value=layer_scale)
    block = ConvBlock(arch, stage, 'X', 0.0, 0.0, rate, None).double()
    x = torch.randn(3, 6, 9, stage.dim, dtype=torch.float64)
    for a, b in zip(
        with_gradients(ConvBlock.__call__, block, x),
        with_gradients(by_hand, block, x),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    assert isinstance(block.layer_scale, nn.Identity) == (layer_scale == 0)


def test_hooks_of_a_branch_see_its_own_input_and_output():
    block, x = make_block('L')
    wanted = block(x)
    seen = {}
    for name in ('norm1', 'attn', 'norm2', 'mlp'):

        def look(_, args, out, name=name):
            seen[name] = args[0].flatten(1, -2), out.flatten(1, -2)

        block.get_submodule(name).register_forward_hook(look)
    torch.testing.assert_close(block(x), wanted)
    x = x.flatten(1, 2)
    for norm, branch in (('norm1', 'attn'), ('norm2', 'mlp')):
        torch.testing.assert_close(seen[norm][0], x)
        torch.testing.assert_close(seen[norm][1], seen[branch][0])
        x = x + seen[branch][1]
    torch.testing.assert_close(x.view_as(wanted), wanted)


@pytest.mark.parametrize(
    'name', ['layer_scale1', 'drop_path', 'attn.proj_drop']
)
def test_hooks_of_idle_layers_see_the_branch_alone(name):
    block, x = make_block('L')
    seen = []
    layer = block.get_submodule(name)
    layer.register_forward_hook(lambda _, args, out: seen.append(out))
    block(x)
    branch = block.attn(block.norm1(x))
    torch.testing.assert_close(seen[0].view_as(branch), branch)


def test_a_drop_path_of_others_is_called():
    class Halved(nn.Module):
        def forward(self, x):
            return x / 2

    block, x = make_block('S', dtype=torch.float32)
    block.drop_path = Halved()
    torch.testing.assert_close(block(x), by_hand(block, x))


@pytest.mark.parametrize('name', ['attn', 'mlp', 'mlp.fc1', 'norm1'])
def test_what_replaces_a_forward_is_called_as_it_was(name):
    block, x = make_block('L', dtype=torch.float32)
    layer, calls = block.get_submodule(name), []

    def replaced(x):
        calls.append(1)
        return 2 * type(layer).forward(layer, x)

    layer.forward = replaced
    wanted = by_hand(block, x)
    torch.testing.assert_close(block(x), wanted)
    assert len(calls) == 2


def test_checkpointed():
    block, x = make_block('S')
    wanted = with_gradients(Block.__call__, block, x)
    found = with_gradients(
        lambda block, x: checkpoint(block, x, use_reentrant=False), block, x
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('norm', [nn.Identity(), nn.LayerNorm(384)])
def test_other_norms_are_called(norm):
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * norm(x)

    block, x = make_block('S', dtype=torch.float32)
    block.norm2 = Doubled()
    torch.testing.assert_close(block(x), by_hand(block, x))


def test_a_norm_without_bias():
    block, x = make_block('S', dtype=torch.float32)
    block.norm1 = nn.LayerNorm(x.shape[-1], bias=False)
    block.norm2 = nn.LayerNorm(x.shape[-1], elementwise_affine=False)
    torch.testing.assert_close(block(x), by_hand(block, x))


def test_branches_of_another_kind_take_no_norm():
    block, x = make_block('L', dtype=torch.float32)
    block.mlp = nn.Linear(x.shape[-1], x.shape[-1])
    torch.testing.assert_close(block(x), by_hand(block, x))


def test_a_branch_of_a_derived_kind_may_take_a_map_alone():
    class Derived(MLP):
        def forward(self, x):
            return 2 * super().forward(x)

    block, x = make_block('L', dtype=torch.float32)
    block.mlp.__class__ = Derived
    torch.testing.assert_close(block(x), by_hand(block, x))
