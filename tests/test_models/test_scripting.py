# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""torch.jit.script: the same numbers and gradients at any size."""

import pytest
import torch
from torch import nn

from mmdat.models import DAT
from mmdat.models.layers import DropPath

KINDS = {
    'dat': (['LS', 'LX', 'LD', 'LD'], ['table'] * 4),
    'dat_pp': (['ND', 'ND', 'FD', 'PD'], ['table', 'none'] * 2),
    'dat_p': (['D'] * 4, ['log_continuous', 'depthwise_conv'] * 2),
}
PLAIN = dict(conv_embed=False, conv_mlp=False, local_perception=False)


def build(name, **kwargs):
    letters, biases = KINDS[name]
    torch.manual_seed(0)
    arch = dict(
        family='dat' if name == 'dat' else 'dat_pp',
        embed_dims=16,
        depths=[len(stage) for stage in letters],
        num_heads=2,
        attentions=letters,
        **(PLAIN if name == 'dat_p' else {}),
    )
    kwargs.setdefault('layer_scale_init_value', 0.5)
    kwargs.setdefault('position_bias', biases)
    if name == 'dat_p':
        kwargs.setdefault('offset_range', 1.5)
        kwargs.setdefault('use_offsets', [True, True, False, True])
    model = DAT(arch, img_size=64, **kwargs).double().eval()
    for name, parameter in model.named_parameters():
        if 'conv_offset.proj' in name:
            parameter.data.mul_(30)  # points move, and leave the map
    return model


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_script_computes_what_the_model_does(name, tmp_path):
    model = build(name)
    names = list(model.state_dict())
    torch.jit.script(model).save(tmp_path / 'script.pt')
    assert list(model.state_dict()) == names
    assert type(model.stages[0]).__name__ == 'Stage'
    script = torch.jit.load(tmp_path / 'script.pt')
    assert set(script.state_dict()) == set(names)
    for size in [(64, 64), (50, 71), (5, 37), (1, 1)]:
        x = torch.rand(2, 3, *size, dtype=torch.float64)
        for got, wanted in zip(script(x), model(x), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize('name', KINDS)
def test_a_script_trains(name):
    model = build(name, drop_path_rate=1.0).train()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.rate = float(round(module.rate))  # of the later blocks
    script = torch.jit.script(model)
    x = torch.rand(2, 3, 40, 56, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    def gradients(run):
        loss = sum(out.square().mean() for out in run(x))
        return torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True
        )

    pairs = zip(gradients(script), gradients(model), strict=True)
    for one, (got, wanted) in zip(parameters, pairs, strict=True):
        got = torch.zeros(()) if got is None else got
        wanted = torch.zeros(()) if wanted is None else wanted
        assert (got - wanted).abs().max() < 1e-8, one


@pytest.mark.parametrize(
    ('letters', 'bias', 'told'),
    [
        ('E', 'table', 'Slide'),
        ('Q', 'table', 'Query'),
        ('D', 'fixed', 'fixed'),
    ],
)
def test_what_has_no_script_is_refused(letters, bias, told):
    arch = dict(embed_dims=16, depths=1, num_heads=2, attentions=[letters] * 4)
    model = DAT(arch, img_size=32, position_bias=bias)
    with pytest.raises(ValueError, match=f'{told}.*torch.export'):
        torch.jit.script(model)


def wide(layer):
    layer.dilation = layer.padding = (2, 2)


def hooked(layer):
    layer.register_forward_hook(lambda *args: 2 * args[2])


def by_hand(layer):
    layer.forward = lambda x: 2 * x


def parametrised(layer):
    nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (hooked, 'lose the hooks of a Conv2d'),
        (by_hand, 'lose the replaced forward of a Conv2d'),
        (parametrised, 'ParametrizedConv2d'),
        (lambda x: vars(x).update(padding_mode='circular'), "'circular'"),
    ],
)
def test_what_a_script_would_lose_is_refused(change, told):
    model = build('dat_pp')
    change(model.stages[0].blocks[0].mlp.dwconv)
    with pytest.raises(ValueError, match=told):
        torch.jit.script(model)


@pytest.mark.parametrize(
    'place', ['', 'patch_embed', 'stages.0', 'stages.0.blocks']
)
def test_hooks_of_containers_are_refused(place):
    model = build('dat_pp')
    hooked(model.get_submodule(place))
    with pytest.raises(ValueError, match='lose the hooks'):
        torch.jit.script(model)


def test_settings_of_convolutions_count():
    model = build('dat_pp')
    wide(model.stages[0].blocks[0].mlp.dwconv)
    x = torch.rand(1, 3, 32, 48, dtype=torch.float64)
    wanted = model(x)
    assert (wanted[0] - build('dat_pp')(x)[0]).abs().max() > 1e-6
    for got, one in zip(torch.jit.script(model)(x), wanted, strict=True):
        torch.testing.assert_close(got, one)
