# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The authors' files have a place for every entry in our models."""

import family
import golden_rule
import pytest
import torch

from mmdat.checkpoints.fitting import Misfit, load_and_compare


def shapes(name):
    parameters = family.skeleton(name).named_parameters()
    return {key: tuple(p.shape) for key, p in parameters}


def three_by_three(shapes):
    return {
        key: shape
        for key, shape in shapes.items()
        if key.startswith('neck.fpn_convs') and len(shape) == 4
    }


@pytest.mark.parametrize(
    ('method', 'kind'),
    [('retinanet', 'dat'), ('retinanet', 'dat_pp'), ('mask_rcnn', 'dat_pp')],
)
def test_necks_with_extra_convolutions(method, kind):
    """Levels above the last stage are convolutions of that stage's map."""
    found = shapes(f'{method}_{kind}_t_coco')
    last = dict(dat=768, dat_pp=512)[kind]
    convolutions = three_by_three(found)
    extra = 2 if method == 'retinanet' else 1
    wanted = [256] * (5 - extra) + [last] + [256] * (extra - 1)
    assert list(convolutions.values()) == [(256, n, 3, 3) for n in wanted]
    lateral = [
        found[f'neck.lateral_convs.{i}.conv.weight'][1]
        for i in range(5 - extra)
    ]
    assert lateral == [last // 2**i for i in reversed(range(5 - extra))]
    assert f'neck.lateral_convs.{5 - extra}.conv.weight' not in found


def test_the_mask_rcnn_of_dat_pools_its_fifth_level():
    assert len(three_by_three(shapes('mask_rcnn_dat_s_coco'))) == 4


@pytest.mark.parametrize('kind', ['dat', 'dat_pp'])
def test_cascade_heads(kind):
    found = shapes(f'cascade_mask_rcnn_{kind}_t_coco')
    assert len(three_by_three(found)) == 4  # the fifth level is pooled
    for stage in range(3):
        head = f'roi_head.bbox_head.{stage}'
        own = {
            key.removeprefix(f'{head}.'): shape
            for key, shape in found.items()
            if key.startswith(f'{head}.')
        }
        wanted = {
            'shared_fcs.0.weight': (1024, 256 * 7 * 7),
            'shared_fcs.0.bias': (1024,),
            'fc_cls.weight': (81, 1024),
            'fc_cls.bias': (81,),
            'fc_reg.weight': (4 * 80, 1024),
            'fc_reg.bias': (4 * 80,),
        }
        for i in range(4):
            wanted[f'shared_convs.{i}.conv.weight'] = (256, 256, 3, 3)
            wanted[f'shared_convs.{i}.bn.weight'] = (256,)
            wanted[f'shared_convs.{i}.bn.bias'] = (256,)
        assert own == wanted
    assert 'roi_head.mask_head.2.conv_logits.weight' in found


def test_cascade_losses():
    cfg = family.load('cascade_mask_rcnn_dat_pp_t_coco').model
    for head in cfg.roi_head.bbox_head:
        assert head.reg_decoded_bbox
        assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
        assert head.norm_cfg.type == 'SyncBN'
    rpn = cfg.rpn_head.loss_bbox
    assert (rpn.type, rpn.beta) == ('SmoothL1Loss', 1 / 9)
    assert cfg.train_cfg.rpn_proposal.max_per_img == 2000


@pytest.mark.parametrize('kind', ['dat', 'dat_pp'])
def test_segmentation_heads(kind):
    found = shapes(f'upernet_{kind}_t_ade20k')
    dims = [64, 128, 256, 512] if kind == 'dat_pp' else [96, 192, 384, 768]
    for i in range(3):
        lateral = found[f'decode_head.lateral_convs.{i}.conv.weight']
        assert lateral == (512, dims[i], 1, 1)
    pooled = found['decode_head.psp_modules.0.1.conv.weight']
    assert pooled == (512, dims[3], 1, 1)
    assert found['auxiliary_head.convs.0.conv.weight'] == (256, dims[2], 3, 3)
    assert found['decode_head.conv_seg.weight'] == (150, 512, 1, 1)
    found = shapes(f'semantic_fpn_{kind}_t_ade20k')
    assert len(three_by_three(found)) == 4
    assert found['decode_head.scale_heads.3.4.conv.weight'] == (
        128,
        128,
        3,
        3,
    )
    assert found['decode_head.conv_seg.weight'] == (150, 128, 1, 1)
    assert not any(key.startswith('auxiliary_head') for key in found)


def meta(shapes):
    return {key: torch.empty(s, device='meta') for key, s in shapes.items()}


@pytest.mark.parametrize('norms', [(0, 1, 2, 3), (1, 2, 3)])
def test_retinanet_needs_no_norm_of_the_first_stage(norms):
    """Neither a file that has it nor one that lacks it is a misfit."""
    model = family.skeleton('retinanet_dat_pp_t_coco')
    assert not hasattr(model.backbone, 'norm0')
    entries = {
        f'backbone.{key}': shape
        for key, shape in golden_rule.key_shapes('keys-det-dat_tiny').items()
        if not key.startswith('norms.') or int(key.split('.')[1]) in norms
    }
    for key, value in model.state_dict().items():
        if not key.startswith('backbone.'):
            entries[key] = value.shape
    assert load_and_compare(model, dict(state_dict=meta(entries))) == Misfit()


@pytest.mark.parametrize('kind', ['v1', 'pp'])
def test_384_starts_from_a_released_file_for_224(kind):
    """Tables are resized while it is loaded; the head comes along."""
    name = dict(v1='dat_b_384', pp='dat_pp_b_384')[kind]
    name = f'classifier_{name}_in1k'
    released = dict(v1='dat_base', pp='dat_pp_base')[kind]
    assert family.load(name).load_from == f'{released}_in1k_224.pth'
    model = family.skeleton(name)
    entries = golden_rule.key_shapes(f'keys-{kind}-dat_base')
    tables = {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if key.endswith('rpe_table')
    }
    assert {shape[1:] for shape in tables.values()} == (
        {(47, 47), (23, 23)}
        if kind == 'v1'
        else {(191, 191), (95, 95), (47, 47), (23, 23)}
    )
    assert load_and_compare(model, dict(model=meta(entries))) == Misfit()
