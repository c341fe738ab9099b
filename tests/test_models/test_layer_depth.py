# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch

from mmdat import DAT


@pytest.fixture(scope='module', params=['dat', 'dat_pp'])
def backbone(request):
    with torch.device('meta'):
        return DAT(
            dict(
                family=request.param,
                embed_dims=[16, 32, 32, 64],
                depths=[1, 2, 3, 1],
                num_heads=[1, 2, 2, 4],
            )
        )


@pytest.mark.parametrize(
    ('name', 'depth'),
    [
        ('patch_embed.conv1.weight', 0),
        ('stages.0.blocks.0.attn.qkv.weight', 1),
        ('downsamples.0.conv.weight', 1),
        ('stages.1.blocks.0.norm1.weight', 2),
        ('stages.1.blocks.1.mlp.fc1.bias', 3),
        ('downsamples.1.norm.bias', 3),
        ('stages.2.blocks.2.attn.rpe_table', 6),
        ('downsamples.2.conv.weight', 6),
        ('stages.3.blocks.0.norm2.bias', 7),
        ('norm0.weight', 8),
        ('norm3.bias', 8),
    ],
)
def test_depths(backbone, name, depth):
    assert backbone.get_layer_depth(name) == (depth, 9)
    whole = f'detector.backbone.{name}'
    assert backbone.get_layer_depth(whole, 'detector.backbone.') == (depth, 9)


def test_what_is_not_in_the_backbone_comes_last(backbone):
    for name in ('neck.lateral_convs.0.conv.weight', 'head.stages.0.weight'):
        assert backbone.get_layer_depth(name, 'backbone.') == (8, 9)


def test_every_layer_has_parameters_and_every_parameter_a_layer(backbone):
    depths = {
        backbone.get_layer_depth(name)[0]
        for name, _ in backbone.named_parameters()
    }
    assert depths == set(range(9))
