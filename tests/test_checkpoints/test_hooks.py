# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Released files load through every door, with nothing left over."""

import copy

import pytest
import released
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from mmdat.models import DAT

CLASSIFIER, DENSE = 'keys-v1-dat_tiny', 'keys-v1det-dat_tiny'


class Detector(nn.Module):
    """The least a model around a backbone can be."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


class Classifier(Detector):
    def __init__(self, backbone: nn.Module, classes: int = 1000) -> None:
        super().__init__(backbone)
        self.head = nn.Module()
        self.head.fc = nn.Linear(768, classes)


def wrap(entries, wrapper, prefix):
    entries = {prefix + k: v for k, v in entries.items()}
    return entries if wrapper is None else {wrapper: entries, 'epoch': 300}


@pytest.fixture(scope='module')
def dense():
    return released.state_dict(DENSE)


@pytest.fixture(scope='module')
def classification():
    return released.state_dict(CLASSIFIER)


@pytest.fixture
def loading_log(monkeypatch):
    """What mmengine says of missing and unexpected entries."""
    lines = []
    monkeypatch.setattr(
        'mmengine.runner.checkpoint.print_log',
        lambda message, *args, **kwargs: lines.append(message),
    )
    return lines


def assert_clean(lines):
    bad = [
        x
        for x in lines
        if 'missing' in x or 'unexpected' in x or 'mismatch' in x
    ]
    assert not bad, bad


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
def test_init_cfg_loads_dense_file(
    tmp_path, dense, wrapper, prefix, loading_log
):
    path = str(tmp_path / 'released.pth')
    torch.save(wrap(dense, wrapper, prefix), path)
    model = DAT('dat_t', init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    assert_clean(loading_log)
    assert torch.equal(model.norm2.weight, dense['norms.2.norm.weight'])
    attn = model.stages[2].blocks[1].attn
    assert torch.equal(attn.rpe_table, dense['stages.2.attns.1.rpe_table'])
    assert torch.equal(
        attn.proj_k.weight, dense['stages.2.attns.1.proj_k.weight'][..., 0, 0]
    )


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
def test_load_from_fills_a_detector(
    tmp_path, dense, wrapper, prefix, loading_log
):
    path = str(tmp_path / 'released.pth')
    torch.save(wrap(dense, wrapper, prefix), path)
    model = Detector(DAT('dat_t'))
    load_checkpoint(model, path, strict=True)
    assert_clean(loading_log)
    assert torch.equal(
        model.backbone.patch_embed.conv1.bias, dense['patch_proj.0.bias']
    )


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
def test_load_from_fills_a_classifier(
    tmp_path, classification, wrapper, loading_log
):
    path = str(tmp_path / 'released.pth')
    torch.save(wrap(classification, wrapper, ''), path)
    model = Classifier(DAT('dat_t', out_indices=(3,)))
    load_checkpoint(model, path, strict=True)
    assert_clean(loading_log)
    assert torch.equal(model.head.fc.bias, classification['cls_head.bias'])
    assert torch.equal(
        model.backbone.norm3.weight, classification['cls_norm.norm.weight']
    )


def test_classification_file_starts_a_dense_backbone(
    tmp_path, classification, loading_log
):
    path = str(tmp_path / 'released.pth')
    torch.save({'model': classification}, path)
    model = DAT('dat_t', init_cfg=dict(type='Pretrained', checkpoint=path))
    before = copy.deepcopy(model.norm1.state_dict())
    model.init_weights()
    assert_clean(loading_log)
    assert torch.equal(model.norm3.bias, classification['cls_norm.norm.bias'])
    assert torch.equal(model.norm1.weight, before['weight'])


def test_plain_strict_load_state_dict(dense, classification):
    DAT('dat_t').load_state_dict(dense, strict=True)
    Detector(DAT('dat_t')).load_state_dict(dense, strict=True)
    model = Classifier(DAT('dat_t', out_indices=(3,)))
    model.load_state_dict(classification, strict=True)


def test_own_checkpoint_round_trip():
    model = Detector(DAT('dat_pp_t'))
    entries = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    model.load_state_dict(entries, strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, entries[key]), key


def test_whole_model_file_initialises_a_backbone(tmp_path):
    whole = Classifier(DAT('dat_t'))
    path = str(tmp_path / 'epoch_1.pth')
    torch.save({'state_dict': whole.state_dict(), 'meta': {}}, path)
    model = DAT('dat_t', init_cfg=dict(type='Pretrained', checkpoint=path))
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, whole.backbone.state_dict()[key]), key


@pytest.mark.parametrize('ours', [False, True])
def test_norms_that_a_model_lacks_are_left_aside(dense, ours):
    """As when RetinaNet starts from the backbone of a Mask R-CNN."""
    entries = dense
    if ours:
        whole = DAT('dat_t')
        whole.load_state_dict(dense)
        entries = whole.state_dict()
    model = DAT('dat_t', out_indices=(1, 2, 3))
    model.load_state_dict(entries, strict=True)
    assert torch.equal(model.norm1.weight, dense['norms.1.norm.weight'])


@pytest.mark.parametrize('ours', [False, True])
def test_norms_that_a_dense_file_lacks_are_missed(dense, ours):
    """Only a classifier has good reason to hold no more than the last."""
    entries = {k: v for k, v in dense.items() if 'norms.0' not in k}
    if ours:
        model = DAT('dat_t', out_indices=(1, 2, 3))
        entries = model.state_dict()
    with pytest.raises(RuntimeError, match='Missing .*norm0.weight'):
        DAT('dat_t').load_state_dict(entries, strict=True)


def test_missing_and_unexpected_entries_are_still_reported(dense):
    entries = dict(dense)
    del entries['stages.1.attns.0.proj_qkv.bias']
    entries['stages.1.surprise'] = torch.zeros(1)
    with pytest.raises(RuntimeError) as error:
        DAT('dat_t').load_state_dict(entries, strict=True)
    assert 'stages.1.blocks.0.attn.proj_qkv.bias' in str(error.value)
    assert 'stages.1.surprise' in str(error.value)


def test_another_variant_is_refused(dense):
    with pytest.raises(RuntimeError, match='size mismatch'):
        DAT('dat_b').load_state_dict(dense)


def test_loading_leaves_the_given_dict_alone(dense):
    keys = list(dense)
    Detector(DAT('dat_t')).load_state_dict(dense)
    assert list(dense) == keys


def test_tables_are_resized_to_another_resolution(classification):
    model = DAT('dat_t', img_size=384, window_size=12, out_indices=(3,))
    model.load_state_dict(
        {k: v for k, v in classification.items() if 'cls_head' not in k}
    )
    attn = model.stages[2].blocks[1].attn
    wanted = nn.functional.interpolate(
        classification['stages.2.attns.1.rpe_table'][None],
        (47, 47),
        mode='bicubic',
    )[0]
    assert torch.equal(attn.rpe_table, wanted)
    table = classification['stages.0.attns.0.relative_position_bias_table']
    # (169, 3) -> (3, 13, 13) -> (3, 23, 23): head 1, row 4, column 9
    square = table.T.reshape(1, 3, 13, 13)
    wanted = nn.functional.interpolate(square, (23, 23), mode='bicubic')
    ours = model.stages[0].blocks[0].attn.relative_position_bias_table
    assert ours[4 * 23 + 9, 1] == wanted[0, 1, 4, 9]


def test_copies_load_into_themselves(dense):
    """EMA copies models; the copy's hooks must act on the copy."""
    model = DAT('dat_t')
    other = copy.deepcopy(model)
    other.load_state_dict(dense)
    assert torch.equal(other.norm0.bias, dense['norms.0.norm.bias'])
    assert not torch.equal(model.norm0.bias, dense['norms.0.norm.bias'])
