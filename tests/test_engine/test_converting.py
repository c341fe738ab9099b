# Copyright (c) mmdat contributors. Apache-2.0 licence.
import json

import numpy as np
import pytest
import released
import released_heads
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from mmdat.checkpoints.fitting import Misfit, load_and_compare
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.engine.converting import convert, standard_meta
from mmdat.models import DAT
from mmdat.utils.errors import UserError


class Classifier(nn.Module):
    """As mmpretrain's ImageClassifier names its parts."""

    def __init__(self, arch, channels):
        super().__init__()
        self.backbone = DAT(arch, out_indices=(3,))
        self.head = nn.Module()
        self.head.fc = nn.Linear(channels, 1000)


@pytest.fixture(scope='module')
def classification():
    return released.state_dict('keys-v1-dat_tiny')


@pytest.fixture(scope='module')
def converted(classification, tmp_path_factory):
    folder = tmp_path_factory.mktemp('converted')
    torch.save(
        dict(
            model=classification,
            optimizer=dict(state={0: dict(exp_avg=torch.ones(9))}),
            epoch=300,
        ),
        folder / 'dat_tiny_in1k_224.pth',
    )
    return convert(folder / 'dat_tiny_in1k_224.pth', folder / 'dat_t.pth')


def test_says_what_it_was(converted):
    assert str(converted.identity) == 'DAT-T for classification at 224'
    assert (converted.epochs, converted.iterations) == (300, None)
    assert converted.left_out == ('optimizer', '16 index tables')


def test_holds_weights_and_a_few_words(converted, classification):
    found = torch.load(converted.path, weights_only=True)
    assert set(found) == {'meta', 'state_dict'}
    assert len(found['state_dict']) == len(
        [k for k in classification if not k.endswith(('index', 'mask'))]
    )
    assert found['meta']['epoch'] == 300
    assert found['meta']['mmdat']['arch'] == 'dat_t'
    assert found['meta']['mmdat']['source'] == 'dat_tiny_in1k_224.pth'
    json.dumps(found['meta'])


def test_is_a_whole_classifier(converted, classification):
    model = Classifier('dat_t', 768)
    file = load_checkpoint_file(converted.path)
    assert load_and_compare(model, file) == Misfit()
    # As mmengine does, strictly, and the same numbers as from the source.
    load_checkpoint(model, str(converted.path), strict=True)
    other = Classifier('dat_t', 768)
    other.load_state_dict(classification)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
@pytest.mark.parametrize('out_indices', [(3,), (1, 2, 3), (0, 1, 2, 3)])
def test_starts_a_backbone(converted, classification, prefix, out_indices):
    """Also a dense one, all of whose norms start new."""
    init_cfg = dict(type='Pretrained', checkpoint=str(converted.path))
    if prefix is not None:
        init_cfg['prefix'] = prefix
    model = DAT('dat_t', out_indices=out_indices, init_cfg=init_cfg)
    if 1 in out_indices:
        nn.init.constant_(model.norm1.weight, 7)
    model.init_weights()
    alone = out_indices == (3,)
    wanted = classification['cls_norm.norm.weight']
    assert torch.equal(
        model.norm3.weight, wanted if alone else torch.ones_like(wanted)
    )
    assert torch.equal(
        model.stages[0].blocks[0].norm1.bias,
        classification['stages.0.layer_norms.0.norm.bias'],
    )
    if 1 in out_indices:
        assert (model.norm1.weight == 7).all()
    file = load_checkpoint_file(converted.path)
    entries = {
        name.removeprefix('backbone.'): value
        for name, value in file['state_dict'].items()
        if name.startswith('backbone.')
    }
    assert load_and_compare(model, entries) == Misfit()


def test_a_converted_file_converts_to_itself(converted, tmp_path):
    again = convert(converted.path, tmp_path / 'dat_t.pth')
    assert again.identity == converted.identity
    first = load_checkpoint_file(converted.path)['state_dict']
    second = load_checkpoint_file(again.path)['state_dict']
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_safetensors_hold_the_same(converted, tmp_path):
    pytest.importorskip('safetensors')
    other = convert(converted.path, tmp_path / 'dat_t.safetensors')
    assert other.path.suffix == '.safetensors' and other.epochs == 300
    first = load_checkpoint_file(converted.path)['state_dict']
    second = load_checkpoint_file(other.path)['state_dict']
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = DAT(
        'dat_t',
        out_indices=(3,),
        init_cfg=dict(type='Pretrained', checkpoint=str(other.path)),
    )
    model.init_weights()
    assert torch.equal(model.norm3.bias, first['backbone.norm3.bias'])


def test_tensors_carry_no_larger_memory_along(tmp_path):
    entries = {
        name: torch.zeros(shape)
        for name, shape in released_heads.backbone('tiny').items()
    }
    name = 'backbone.norms.3.norm.bias'
    entries[name] = torch.zeros(10**7)[: len(entries[name])]
    torch.save(dict(state_dict=entries), tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert done.path.stat().st_size < 1.01 * 4 * 23_450_772
    assert done.epochs is None


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_a_backbone_alone_becomes_the_backbone_of_a_model(tmp_path, prefix):
    entries = {
        prefix + name.removeprefix('backbone.'): torch.zeros(shape)
        for name, shape in released_heads.backbone('tiny').items()
    }
    torch.save(entries, tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path / 'y.pth')
    found = load_checkpoint_file(done.path)['state_dict']
    with torch.device('meta'):
        own = DAT('dat_pp_t').state_dict()
    assert set(found) == {f'backbone.{name}' for name in own}


def test_meta_of_mmcv_1_becomes_that_of_mmengine():
    meta = dict(
        CLASSES=('wall', 'building'),
        PALETTE=np.array([[120, 120, 120], [180, 120, 120]]),
        iter=np.int64(160000),
        epoch=64,
        config='a = 1',
        hook_msgs={},
    )
    assert standard_meta(dict(meta=meta, state_dict={})) == dict(
        epoch=64,
        iter=160000,
        dataset_meta=dict(
            classes=('wall', 'building'),
            palette=[[120, 120, 120], [180, 120, 120]],
        ),
    )


def test_other_files_are_refused(tmp_path):
    torch.save({'conv1.weight': torch.ones(3)}, tmp_path / 'resnet.pth')
    with pytest.raises(UserError, match='resnet.pth holds neither DAT nor'):
        convert(tmp_path / 'resnet.pth', tmp_path / 'y.pth')
    assert [p.name for p in tmp_path.iterdir()] == ['resnet.pth']
