# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Classifiers and backbones by name, without any OpenMMLab package."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import mmdat
from mmdat.models.arch import ARCH_ZOO
from mmdat.utils.errors import UserError
from mmdat.zoo.names import NAMES, arch_of

TINY = dict(
    embed_dims=[8, 16, 16, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4]
)


def tiny(**kwargs):
    torch.manual_seed(0)
    return mmdat.create_model(TINY, img_size=64, **kwargs).eval()


def test_names():
    names = mmdat.list_models()
    assert {*names} == {*NAMES} and [*NAMES.values()] == [*ARCH_ZOO]
    assert mmdat.list_models('dat_pp_*') == [
        *('dat_pp_base', 'dat_pp_base_384', 'dat_pp_small', 'dat_pp_tiny')
    ]
    assert mmdat.list_models('dat_*', '*_pp_*') == [
        *('dat_base', 'dat_base_384', 'dat_p_tiny', 'dat_small', 'dat_tiny')
    ]
    for name, arch in NAMES.items():
        assert arch_of(name) == arch_of(arch) == arch
    assert arch_of('dat_pp_base_in1k_384') == 'dat_pp_b_384'
    assert arch_of('dat_tiny_in1k_224') == arch_of('DAT-Tiny') == 'dat_t'


@pytest.mark.parametrize(
    ('name', 'nearest'),
    [('dat_tini', 'dat_tiny'), ('dat_pp_smal', 'dat_pp_small'), ('', None)]
    + [('dat_tiny_384', 'dat_tiny'), (3, None), ('resnet50', None)],
)
def test_unknown_names_get_the_nearest(name, nearest):
    with pytest.raises(UserError) as caught:
        mmdat.create_model(name)
    assert repr(name) in str(caught.value)
    meant = f'similar name is {nearest}' if nearest else 'one of dat_base'
    assert meant in str(caught.value)


@pytest.mark.parametrize('name', ['dat_base_384', 'dat_p_tiny', 'dat_pp_tiny'])
def test_each_model_builds(name):
    with torch.device('meta'):
        model = mmdat.create_model(name, num_classes=5)
        out = model(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, 5)
    assert model.feature_info.channels() == [
        stage.dim for stage in model.backbone.arch.stages
    ]
    side = 384 if '384' in name else 224
    assert model.default_cfg['input_size'] == (3, side, side)
    assert model.default_cfg['architecture'] == name


def test_a_classifier_and_its_parts():
    model = tiny(num_classes=6, in_chans=4)
    x = torch.rand(2, 4, 70, 50)
    features = model.forward_features(x)
    assert features.shape == (2, 32, 3, 2)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))
    assert model.num_classes == 6 and model(x).shape == (2, 6)

    model.reset_classifier(3)
    assert model(x).shape == (2, 3) == (2, model.num_classes)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), features)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(2, 'avg')
    assert model(x).shape == (2, 2)


def test_intermediate_maps():
    model = tiny()
    dense = tiny(features_only=True)
    dense.load_state_dict(model.backbone.state_dict(), strict=False)
    x = torch.rand(2, 3, 70, 50)
    last, maps = model.forward_intermediates(x)
    torch.testing.assert_close(last, model.forward_features(x))
    for i, (got, wanted) in enumerate(zip(maps, dense(x), strict=True)):
        normed = getattr(dense, f'norm{i}')(got.permute(0, 2, 3, 1))
        torch.testing.assert_close(normed.permute(0, 3, 1, 2), wanted)
    some = model.forward_intermediates(
        x, [0, -1], norm=True, output_fmt='NHWC', intermediates_only=True
    )
    torch.testing.assert_close(some[0].permute(0, 3, 1, 2), maps[0])
    torch.testing.assert_close(some[1].permute(0, 3, 1, 2), last)
    count = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0, -2]) == [0, 2]
    assert sum(p.numel() for p in model.parameters()) < count / 2
    pruned = model.forward_intermediates(
        x, [0, 2], intermediates_only=True, stop_early=True
    )
    torch.testing.assert_close(pruned, [maps[0], maps[2]])


def test_features_only():
    model = tiny(features_only=True, out_indices=(1, -1), in_chans=1)
    assert model.feature_info.channels() == [16, 32]
    assert model.feature_info.reduction() == [8, 32]
    assert model.feature_info.module_name() == ['stages.1', 'stages.3']
    maps = model(torch.rand(1, 1, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 8, 12), (1, 32, 2, 3)]
    everything = mmdat.create_model(
        'dat_pp_tiny', None, num_classes=3, features_only=True, img_size=96
    )
    assert everything.feature_info.channels() == [64, 128, 256, 512]
    assert everything.stages[0].blocks[1].attn.rpe_table.shape == (2, 47, 47)


def test_groups_for_layer_decay():
    model = tiny()
    fine, coarse = model.group_matcher(), model.group_matcher(coarse=True)
    last = model.backbone.get_layer_depth('head.fc.weight', 'backbone.')[0]
    for name, _ in model.named_parameters():
        depth, _ = model.backbone.get_layer_depth(name, 'backbone.')
        assert fine(name) == depth
        if '.stages.' in name:
            assert coarse(name) == int(name.split('.')[2]) + 1
    assert fine('head.fc.weight') == last and coarse('head.fc.weight') == 5
    assert coarse('backbone.patch_embed.conv1.weight') == 0
    assert coarse('backbone.downsamples.0.conv.weight') == 1
    tables = [n for n, _ in model.named_parameters() if 'rp' in n]
    assert model.no_weight_decay() == {*tables} and len(tables) == 5


def test_recomputing_blocks():
    model = tiny(num_classes=2).train()
    x = torch.rand(1, 3, 64, 64)
    saved = {}
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        count = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, count=count: (count.append(t.numel()), t)[1],
            lambda t: t,
        ):
            model(x)
        saved[enable] = sum(count)
    assert saved[True] < saved[False] / 2


@pytest.mark.parametrize(
    ('kwargs', 'told'),
    [
        (dict(out_indices=(1,)), 'features_only=True'),
        (dict(features_only=True, out_indices=2), 'list of stage numbers'),
        (dict(features_only=True, out_indices=(4,)), 'from -4 to 3'),
        (dict(features_only=True, out_indices=(2, 1)), 'rising'),
        (dict(features_only='yes'), 'True or False'),
        (dict(pretrained=True), 'cloud drives'),
        (dict(num_classes=-1), 'num_classes'),
        (dict(num_classes=2.5), 'num_classes'),
        (dict(global_pool='max'), "'avg', or ''"),
        (dict(global_pool=''), "'avg' for a classifier"),
        (dict(drop_rate=2), 'drop_rate'),
        (dict(drop_path=0.2), 'argument here is drop_path_rate'),
        (dict(in_channels=3), 'in_chan'),
        (dict(pretrained='nowhere.pth'), 'There is no checkpoint'),
    ],
)
def test_wrong_arguments(kwargs, told):
    with pytest.raises((UserError, TypeError), match=told):
        mmdat.create_model(TINY, **kwargs)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_graphs_and_scripts():
    model = tiny(num_classes=2)
    graph = symbolic_trace(model)
    x = torch.rand(1, 3, 48, 64)
    assert torch.equal(graph(x), model(x))
    for one in (model, graph):
        torch.testing.assert_close(torch.jit.script(one)(x), model(x))


ALONE = """
import sys, torch
class Refuse:
    def find_spec(self, name, *args):
        top = name.partition('.')[0]
        if top in ('timm', 'torchvision', 'mmcv', 'mmdet', 'mmseg', 'cv2'):
            raise ModuleNotFoundError(f'No module named {top!r}', name=top)
sys.meta_path.insert(0, Refuse())
import mmdat
model = mmdat.create_model('dat_pp_tiny', features_only=True)
assert len(model(torch.rand(1, 3, 32, 32))) == 4
"""


def test_torch_and_mmengine_are_enough():
    done = subprocess.run(
        [sys.executable, '-c', ALONE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
