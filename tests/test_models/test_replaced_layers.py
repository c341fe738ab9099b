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

from mmdat.models import fused, stock
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


def test_a_patched_convolution(monkeypatch):
    """By the method that convolutions are made of, of the class or of one."""
    block, x = make('N')
    forward = nn.Conv2d._conv_forward

    def half(self, *args):
        return forward(self, *args) / 2

    for place in (nn.Conv2d, block.mlp.dwconv):
        own = half if place is nn.Conv2d else half.__get__(place)
        with monkeypatch.context() as patch:
            patch.setattr(place, '_conv_forward', own, raising=False)
            fast, plain, trained = outputs(block, x)
        torch.testing.assert_close(fast, plain)
        torch.testing.assert_close(trained, plain)
        assert (plain - block(x)).abs().max() > 1e-3


@pytest.mark.parametrize('kind', [nn.Linear, nn.LayerNorm])
def test_a_patched_call(kind, monkeypatch):
    block, x = make('L')
    calls = []

    def counted(self, x):
        calls.append(1)
        return nn.Module.__call__(self, x)

    monkeypatch.setattr(kind, '__call__', counted)
    with torch.no_grad():
        block(x)
    assert len(calls) == {nn.Linear: 4, nn.LayerNorm: 2}[kind]


@pytest.mark.parametrize('name', ['linear', 'layer_norm', 'conv2d'])
def test_functions_patched_before_the_import(name, monkeypatch):
    assert stock._genuine(F, name) is getattr(F, name)
    monkeypatch.setattr(F, name, lambda *args: None)
    assert stock._genuine(F, name) is None


def test_one_layer_that_is_compiled():
    block, x = make('N')
    block.mlp._compiled_call_impl = lambda x: 0 * x
    fast, plain, _ = outputs(block, x)
    torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize(('kind', 'bias'), CASES)
def test_weights_of_any_layout(kind, bias):
    block, x = make(kind, bias)
    for name in layers(block):
        for own in ('weight', 'bias'):
            parameter = getattr(block.get_submodule(name), own, None)
            if parameter is None:
                continue
            changed = copy.deepcopy(block)
            every_other = torch.randn([2 * n for n in parameter.shape])
            every_other = every_other[
                tuple([slice(None, None, 2)] * parameter.ndim)
            ]
            for data in (every_other, parameter[:1].expand_as(parameter)):
                layer = changed.get_submodule(name)
                setattr(layer, own, nn.Parameter(data.detach()))
                fast, plain, trained = outputs(changed, x)
                torch.testing.assert_close(
                    fast, plain, atol=1e-4, rtol=1e-4, msg=f'{name}.{own}'
                )
                torch.testing.assert_close(trained, plain)


@pytest.mark.parametrize('kind', ['L', 'S', 'N'])
@pytest.mark.parametrize('inner', [8, 24])
def test_heads_of_another_width(kind, inner):
    """As after structured pruning."""
    block, x = make(kind)
    names = ('qkv', 'proj') if kind == 'N' else ('proj_qkv', 'proj_out')
    setattr(block.attn, names[0], nn.Linear(16, 3 * inner))
    setattr(block.attn, names[1], nn.Linear(inner, 16))
    fast, plain, trained = outputs(block, x)
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(trained, plain)

    def gradients():
        return torch.autograd.grad(
            block(x).square().sum(), list(block.parameters())
        )

    found = gradients()
    with fused.disabled():
        wanted = gradients()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


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
