# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Every layer of every kind of block is called, however it was changed.

Adapters wrap layers, pruning and parametrisation make weights anew, hooks
look and change, quantisation replaces: the output follows, with and without
gradients.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize, prune

from mmdat.models import fused
from mmdat.models.arch import POSITION_BIASES, resolve_arch
from mmdat.models.block import Block, ConvBlock

CASES = [(kind, 'table') for kind in 'LSNPXEFQ']
CASES += [('D', bias) for bias in POSITION_BIASES]


def make(kind, bias='table', family=None):
    torch.manual_seed(0)
    family = family or ('dat' if kind in 'LSP' else 'dat_pp')
    arch = resolve_arch(
        dict(
            family=family,
            embed_dims=[16] * 4,
            depths=[1] * 4,
            num_heads=[2] * 4,
            attentions=[kind] * 4,
        ),
        dict(window_size=3, neighborhood_size=3, position_bias=bias),
    )
    block = (ConvBlock if kind == 'X' else Block)(
        arch, arch.stages[2], kind, 0.0, 0.0, 0.0, None
    ).eval()
    for parameter in block.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return block, torch.randn(2, 6, 7, 16)


def layers(block):
    """Names of all layers that have no layers in them."""
    return [
        name
        for name, layer in block.named_modules()
        if not any(layer.children())
        and not isinstance(layer, nn.Identity | nn.Dropout)
        and type(layer).__name__ != 'DropPath'
    ]


def replace(block, name, layer):
    parent, _, child = name.rpartition('.')
    setattr(block.get_submodule(parent), child, layer)


class Wrapped(nn.Module):
    """As adapters do: no weight of its own, something added."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return 1.5 * self.base_layer(x)


class Scaled(nn.Module):
    def forward(self, weight):
        return 1.5 * weight


def wrap(block, name):
    replace(block, name, Wrapped(block.get_submodule(name)))


def hook(block, name):
    block.get_submodule(name).register_forward_hook(lambda *a: 1.5 * a[2])


def pre_hook(block, name):
    block.get_submodule(name).register_forward_pre_hook(
        lambda _, args: (1.5 * args[0] + 0.1,)
    )


def replace_forward(block, name):
    layer = block.get_submodule(name)
    layer.forward = lambda x: 1.5 * type(layer).forward(layer, x)


def derive(block, name):
    layer = block.get_submodule(name)
    kind = type(layer)

    def forward(self, x):
        return 1.5 * kind.forward(self, x)

    layer.__class__ = type('Derived', (kind,), dict(forward=forward))


def parametrise(block, name):
    layer = block.get_submodule(name)
    parametrize.register_parametrization(layer, 'weight', Scaled())


def prune_half(block, name):
    prune.random_unstructured(block.get_submodule(name), 'weight', 0.5)


CHANGES = [wrap, hook, pre_hook, replace_forward, derive]
OF_WEIGHTS = [parametrise, prune_half]


def outputs(block, x):
    """With gradients and without, as it runs and layer by layer."""
    with torch.no_grad():
        fast = block(x)
        with fused.disabled():
            return fast, block(x), block(x.clone().requires_grad_())


@pytest.mark.parametrize(('kind', 'bias'), CASES)
def test_every_layer_is_called(kind, bias):
    block, x = make(kind, bias)
    before = outputs(block, x)
    for name in layers(block):
        has_weight = hasattr(block.get_submodule(name), 'weight')
        for change in CHANGES + OF_WEIGHTS * has_weight:
            changed = copy.deepcopy(block)
            change(changed, name)
            fast, plain, _ = outputs(changed, x)
            trained = changed(x.clone().requires_grad_())
            for found in (fast, trained):
                torch.testing.assert_close(
                    found, plain, msg=f'{name}, {change.__name__}'
                )
            seen = (plain - before[1]).abs().max() > 1e-6
            assert seen, f'{name}, {change.__name__} changes nothing'


@pytest.mark.parametrize(('kind', 'bias'), CASES)
def test_layers_without_a_bias_train(kind, bias):
    block, x = make(kind, bias)
    for name in layers(block):
        if getattr(block.get_submodule(name), 'bias', None) is None:
            continue
        changed = copy.deepcopy(block)
        changed.get_submodule(name).bias = None
        fast, plain, _ = outputs(changed, x)
        torch.testing.assert_close(fast, plain, msg=name)
        leaf = x.clone().requires_grad_()
        changed(leaf).sum().backward()
        assert leaf.grad.isfinite().all()
        for other, parameter in changed.named_parameters():
            assert parameter.grad is not None, f'{other} without {name}.bias'


def settings(layer):
    """Changes of a layer that keep the shape of its output."""
    if isinstance(layer, nn.GELU):
        yield dict(approximate='tanh')
    if isinstance(layer, nn.LayerNorm):
        yield dict(eps=0.5)
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
        yield dict(padding_mode='replicate')
        yield dict(padding_mode='circular')
        if layer.stride == (1, 1):
            yield dict(padding=(2, 2), dilation=(2, 2))


@pytest.mark.parametrize(('kind', 'bias'), CASES)
def test_settings_count(kind, bias):
    block, x = make(kind, bias)
    before = block(x)
    for name in layers(block):
        for new in settings(block.get_submodule(name)):
            changed = copy.deepcopy(block)
            vars(changed.get_submodule(name)).update(new)
            fast, plain, trained = outputs(changed, x)
            torch.testing.assert_close(fast, plain, msg=f'{name}, {new}')
            torch.testing.assert_close(trained, plain)
            assert (plain - before).abs().max() > 1e-7, (name, new)


@pytest.mark.parametrize('name', ['act', 'drop', 'dwconv', 'extra'])
def test_other_plain_layers(name):
    """Of kinds that the fast code knows, in places that it does not."""
    block, x = make('N')
    hidden = block.mlp.fc1.out_features
    layer = nn.LayerNorm(16 if name in ('drop', 'extra') else hidden)
    if name == 'drop':
        block.mlp.dwconv = block.mlp.drop = None
        layer = Wrapped(nn.Identity())
    block.mlp.add_module(name, layer)
    fast, plain, trained = outputs(block, x)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(trained, plain)


def test_a_wider_kernel():
    block, x = make('N')
    channels = block.mlp.dwconv.out_channels
    wide = type(block.mlp.dwconv)(
        channels, channels, 5, padding=2, groups=channels
    )
    block.mlp.dwconv = wide
    fast, plain, _ = outputs(block, x)
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize('kind', ['L', 'N', 'D'])
@pytest.mark.parametrize(
    'patched', [nn.Linear, nn.LayerNorm, nn.GELU, nn.Conv2d]
)
def test_a_patched_class(kind, patched, monkeypatch):
    block, x = make(kind, family='dat_pp')
    calls, forward = [], patched.forward

    def counted(self, x):
        calls.append(1)
        return forward(self, x)

    block(x)
    assert not calls
    monkeypatch.setattr(patched, 'forward', counted)
    wanted = sum(isinstance(m, patched) for m in block.modules())
    with torch.no_grad():
        block(x)
    assert len(calls) == wanted


@pytest.mark.parametrize('name', ['linear', 'gelu', 'layer_norm'])
def test_a_patched_function(name, monkeypatch):
    block, x = make('L')
    calls, function = [], getattr(F, name)

    def counted(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(F, name, counted)
    with torch.no_grad():
        block(x)
    assert len(calls) == dict(linear=4, gelu=1, layer_norm=2)[name]


@pytest.mark.parametrize(('kind', 'bias'), CASES)
def test_global_hooks(kind, bias):
    block, x = make(kind, bias)
    seen = []
    handle = torch_module.register_module_forward_hook(
        lambda layer, *_: seen.append(layer)
    )
    try:
        with torch.no_grad():
            block(x)
    finally:
        handle.remove()
    assert {id(m) for m in seen} >= {
        id(block.get_submodule(name)) for name in layers(block)
    }


QUANTISE = """
import warnings
import torch
from test_replaced_layers import CASES, make
warnings.simplefilter('ignore')
torch.backends.quantized.engine = 'fbgemm'
for kind, bias in CASES:
    block, x = make(kind, bias)
    with torch.no_grad():
        exact = block(x)
        found = torch.ao.quantization.quantize_dynamic(
            block, {torch.nn.Linear}
        )(x)
    error = (found - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.1, (kind, bias, error)
print('fine')
"""


def test_dynamic_quantisation():
    if 'fbgemm' not in torch.backends.quantized.supported_engines:
        pytest.skip('no engine of this machine quantises')
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, '-c', QUANTISE],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([here, *sys.path])),
    )
    assert done.stdout.strip() == 'fine', done.stderr
