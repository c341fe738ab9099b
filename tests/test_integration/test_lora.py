# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Low-rank adapters on every linear layer: they train, and can be merged."""

import copy

import pytest
import torch
from torch import nn

from mmdat.models import DAT

SMALL = dict(embed_dims=[16] * 4, depths=[2] * 4, num_heads=[2] * 4)
SETTINGS = dict(
    attentions=['LS', 'ND', 'PX', 'EQ'], position_bias='log_continuous'
)


def model():
    torch.manual_seed(0)
    return DAT(SMALL, **SETTINGS).eval()


def linear_names(module):
    return sorted(
        {n for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    )


def randomise(module):
    """Adapters begin with zeros, which nobody would see."""
    for name, parameter in module.named_parameters():
        if 'lora_' in name:
            parameter.data = 0.2 * torch.randn_like(parameter)


def check(adapted, merged, plain, x):
    """What adapters add is there, trained, and the same once merged."""
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for out, wanted, before in zip(
                adapted(x), merged(x), plain(x), strict=True
            ):
                torch.testing.assert_close(out, wanted, atol=1e-4, rtol=1e-4)
                assert (out - before).abs().max() > 1e-3
    sum(out.square().mean() for out in adapted(x)).backward()
    for name, parameter in adapted.named_parameters():
        if 'lora_' in name:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_peft():
    peft = pytest.importorskip('peft')
    plain, x = model(), torch.rand(1, 3, 64, 96)
    config = peft.LoraConfig(r=4, target_modules=linear_names(plain))
    adapted = peft.get_peft_model(copy.deepcopy(plain), config)
    randomise(adapted)
    adapted.eval()
    merged = copy.deepcopy(adapted).merge_and_unload()
    check(adapted, merged, plain, x)


def test_mmpretrain():
    peft = pytest.importorskip('mmpretrain.models.peft')
    plain, x = model(), torch.rand(1, 3, 64, 96)
    names = [dict(type=name) for name in linear_names(plain)]
    # From a config, as mmpretrain 1.2 takes no module; with the same numbers.
    config = dict(type='mmdat.DAT', arch=SMALL, **SETTINGS)
    torch.manual_seed(0)
    adapted = peft.LoRAModel(
        module=config, rank=4, drop_rate=0.0, targets=names
    ).eval()
    randomise(adapted)
    merged = copy.deepcopy(plain)
    for name, layer in adapted.module.named_modules():
        if isinstance(layer, peft.lora.LoRALinear):
            up, down = layer.lora_up.weight, layer.lora_down.weight
            merged.get_submodule(name).weight.data += (
                layer.scaling * up @ down
            ).detach()
    check(adapted.module, merged, plain, x)
