# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Layer-wise decay of learning rates, on one config of each task."""

import subprocess
import sys

import family
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

from mmdat import DAT

CONSTRUCTOR = 'mmdat.LayerDecayOptimWrapperConstructor'
SMALL = dict(
    embed_dims=[16, 32, 32, 64], depths=[1, 2, 3, 1], num_heads=[1, 2, 2, 4]
)


def groups(model, cfg, **changes):
    """(learning rate, weight decay) of each parameter, by its name."""
    init_default_scope(cfg.default_scope)
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, **changes})
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize(
    'name',
    [
        'cascade_mask_rcnn_dat_pp_t_coco',
        'upernet_dat_t_ade20k',
        'classifier_dat_pp_t_in1k',
    ],
)
def test_scales_by_depth_and_keeps_the_decays(name):
    cfg = family.load(name)
    model = family.skeleton(name)
    usual = groups(model, cfg)
    rules = dict(cfg.optim_wrapper.paramwise_cfg, layer_decay_rate=0.5)
    found = groups(model, cfg, constructor=CONSTRUCTOR, paramwise_cfg=rules)
    layers = sum(stage.depth for stage in model.backbone.arch.stages) + 2
    for parameter, (rate, decay) in usual.items():
        depth, count = model.backbone.get_layer_depth(parameter, 'backbone.')
        assert count == layers
        scale = 0.5 ** (layers - 1 - depth)
        assert found[parameter] == (rate * scale, decay), parameter
    assert found.keys() == usual.keys()
    lr = cfg.optim_wrapper.optimizer.lr
    first = 'backbone.patch_embed.conv1.weight'
    assert found[first][0] == lr * 0.5 ** (layers - 1)
    heads = {rate for key, (rate, _) in found.items() if 'head' in key}
    assert heads == {lr}
    assert len({decay for _, decay in found.values()}) == 2


def test_agrees_with_the_one_of_mmpretrain():
    cfg = family.load('classifier_dat_t_in1k')
    model = family.skeleton('classifier_dat_t_in1k')
    rules = dict(cfg.optim_wrapper.paramwise_cfg, layer_decay_rate=0.7)
    theirs, ours = (
        groups(model, cfg, constructor=constructor, paramwise_cfg=rules)
        for constructor in (
            'LearningRateDecayOptimWrapperConstructor',
            CONSTRUCTOR,
        )
    )
    assert ours.keys() == theirs.keys()
    for parameter, settings in theirs.items():
        assert ours[parameter] == pytest.approx(settings), parameter
    assert len({rate for rate, _ in ours.values()}) == 14


def wrapper_cfg(rate, optimizer=None, **rules):
    return dict(
        constructor=CONSTRUCTOR,
        optimizer=optimizer or dict(type='AdamW', lr=1.0, weight_decay=0.1),
        paramwise_cfg=dict(layer_decay_rate=rate, **rules),
    )


def test_combines_with_multipliers_of_the_rate():
    rules = dict(
        custom_keys={
            'stages.3': dict(lr_mult=10.0, decay_mult=0.0),
            'patch_embed': dict(lr_mult=3.0),
        },
        bias_lr_mult=2.0,
    )
    model = nn.ModuleDict(dict(encoder=DAT(SMALL), fc=nn.Linear(2, 2)))
    wrapper = build_optim_wrapper(model, wrapper_cfg(0.5, **rules))
    found = {
        group['param_name']: (
            group['lr'],
            group['lr_scale'],
            group['weight_decay'],
        )
        for group in wrapper.optimizer.param_groups
    }
    layers = 9
    assert found['encoder.stages.3.blocks.0.mlp.fc1.weight'] == (5, 0.5, 0.0)
    lowest = 0.5 ** (layers - 1)
    assert found['encoder.patch_embed.conv1.weight'] == (
        3 * lowest,
        lowest,
        0.1,
    )
    assert found['encoder.stages.2.blocks.2.mlp.fc1.bias'] == (0.5, 0.25, 0.1)
    assert found['fc.weight'] == (1, 1, 0.1)
    assert found['fc.bias'] == (2, 1, 0.1)


def test_frozen_stages_have_no_group():
    model = nn.ModuleDict(dict(backbone=DAT(SMALL, frozen_stages=2)))
    wrapper = build_optim_wrapper(model, wrapper_cfg(0.5))
    names = {g['param_name'] for g in wrapper.optimizer.param_groups}
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}


def test_a_step_moves_deep_layers_more():
    """AdamW's first step is the learning rate, whatever the gradient."""
    model = nn.ModuleDict(dict(backbone=DAT(SMALL)))
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.0, eps=1e-20)
    cfg = wrapper_cfg(0.5, optimizer)
    wrapper = build_optim_wrapper(model, cfg)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    outs = model['backbone'](torch.rand(1, 3, 64, 64))
    wrapper.update_params(sum(out.square().mean() for out in outs))
    moved = {
        name: (parameter - before[name]).abs().max().item()
        for name, parameter in model.named_parameters()
    }
    assert moved['backbone.norm3.weight'] == pytest.approx(1e-3, rel=0.01)
    fc = 'backbone.stages.1.blocks.0.mlp.fc2.weight'
    assert moved[fc] == pytest.approx(1e-3 / 64, rel=0.01)


@pytest.mark.parametrize('rate', [None, 0, 1.5, 'half'])
def test_refuses_other_rates(rate):
    with pytest.raises(ValueError, match=f'at most 1; got {rate!r}'):
        build_optim_wrapper(DAT(SMALL), wrapper_cfg(rate))


def test_refuses_a_model_without_a_dat_and_an_optimizer_without_a_rate():
    with pytest.raises(ValueError, match='got Linear without one'):
        build_optim_wrapper(nn.Linear(2, 2), wrapper_cfg(0.5))
    cfg = wrapper_cfg(0.5, dict(type='AdamW'))
    with pytest.raises(ValueError, match="must have an lr; got {'type'"):
        build_optim_wrapper(DAT(SMALL), cfg)


def test_is_found_by_its_scope_and_needs_only_mmengine():
    code = (
        'import sys\n'
        'import torch\n'
        'from mmengine.optim import build_optim_wrapper\n'
        'from mmengine.registry import MODELS\n'
        f"model = MODELS.build(dict(type='mmdat.DAT', arch={SMALL}))\n"
        f'wrapper = build_optim_wrapper(model, {wrapper_cfg(0.5)})\n'
        "heavy = {'mmdet', 'mmseg', 'mmpretrain'} & set(sys.modules)\n"
        'print(len(wrapper.optimizer.param_groups), heavy)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count = len(list(DAT(SMALL).parameters()))
    assert done.stdout.splitlines()[-1] == f'{count} set()'


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_is_found_from_the_scope_of_any_package(scope):
    pytest.importorskip(scope)
    init_default_scope(scope)
    wrapper = build_optim_wrapper(DAT(SMALL), wrapper_cfg(0.5))
    scales = {g['lr_scale'] for g in wrapper.optimizer.param_groups}
    assert scales == {0.5**n for n in range(9)}
