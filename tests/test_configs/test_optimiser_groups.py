# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Weight decay, name by name, by the authors' rules on their names."""

from functools import cache

import family
import golden_rule
import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmdat.checkpoints.released import rename

TABLES = ('relative_position_bias_table', 'rpe_table')
DENSE = ('absolute_pos_embed', *TABLES, 'norm')


@cache
def decays(name):
    """The model of a config, and the weight decay of each parameter."""
    model = family.skeleton(name)
    wrapper = build_optim_wrapper(model, family.load(name).optim_wrapper)
    names = {id(p): key for key, p in model.named_parameters()}
    found = {
        names[id(parameter)]: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert found.keys() == set(names.values())
    return model, found


@pytest.mark.parametrize(
    ('name', 'keys', 'decay'),
    [
        ('retinanet_dat_t_coco', 'v1det-dat_tiny', 0.05),
        ('retinanet_dat_pp_t_3x_coco', 'det-dat_tiny', 0.05),
        ('mask_rcnn_dat_t_3x_coco', 'v1det-dat_tiny', 0.05),
        ('mask_rcnn_dat_pp_t_coco', 'det-dat_tiny', 0.05),
        ('cascade_mask_rcnn_dat_pp_t_coco', 'det-dat_tiny', 0.05),
        ('cascade_mask_rcnn_dat_pp_b_3x_coco', 'det-dat_base', 0.05),
        ('upernet_dat_t_ade20k', 'v1det-dat_tiny', 0.01),
        ('upernet_dat_pp_b_ade20k', 'det-dat_base', 0.01),
        ('semantic_fpn_dat_t_ade20k', 'v1det-dat_tiny', 1e-4),
        ('semantic_fpn_dat_pp_t_ade20k', 'det-dat_tiny', 1e-4),
    ],
)
def test_backbones_of_detectors_and_segmentors(name, keys, decay):
    model, found = decays(name)
    theirs = golden_rule.key_shapes(f'keys-{keys}')
    if not hasattr(model.backbone, 'norm0'):
        theirs = {k: s for k, s in theirs.items() if k[:8] != 'norms.0.'}
    assert len(theirs) == len(list(model.backbone.parameters()))
    ours = {key: found[f'backbone.{rename(key)}'] for key in theirs}
    assert ours == {
        key: 0.0 if any(word in key for word in DENSE) else decay
        for key in theirs
    }


@pytest.mark.parametrize(
    ('name', 'keys', 'decay'),
    [
        ('classifier_dat_t_in1k', 'v1-dat_tiny', 0.05),
        ('classifier_dat_s_in1k', 'v1-dat_small', 0.05),
        ('classifier_dat_b_384_in1k', 'v1-dat_base_384', 1e-8),
        ('classifier_dat_pp_t_in1k', 'pp-dat_tiny', 0.05),
        ('classifier_dat_pp_b_384_in1k', 'pp-dat_base_384', 1e-8),
    ],
)
def test_classifiers(name, keys, decay):
    _, found = decays(name)
    theirs = golden_rule.key_shapes(f'keys-{keys}')

    def ours(key):
        if key.startswith('cls_head.'):
            return f'head.fc.{key.removeprefix("cls_head.")}'
        return f'backbone.{rename(key)}'

    assert {ours(key) for key in theirs} == found.keys()
    assert {key: found[ours(key)] for key in theirs} == {
        key: 0.0
        if len(shape) == 1
        or key.endswith('.bias')
        or any(word in key for word in TABLES)
        else decay
        for key, shape in theirs.items()
    }


def heads(name):
    """Decay of the heads' and neck's parameters: of norms, of the others."""
    model, found = decays(name)
    norms, others = set(), set()
    for place, module in model.named_modules():
        if place.startswith('backbone') or not place:
            continue
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key, _ in module.named_parameters(recurse=False):
            (norms if is_norm else others).add(found[f'{place}.{key}'])
    return norms, others


def test_heads():
    """Their detectors' norms have no decay, their segmentors' have."""
    assert heads('cascade_mask_rcnn_dat_pp_t_coco') == ({0.0}, {0.05})
    assert heads('retinanet_dat_pp_t_coco') == (set(), {0.05})
    assert heads('mask_rcnn_dat_pp_t_coco') == (set(), {0.05})
    assert heads('upernet_dat_pp_t_ade20k') == ({0.01}, {0.01})
    assert heads('semantic_fpn_dat_pp_t_ade20k') == ({1e-4}, {1e-4})
