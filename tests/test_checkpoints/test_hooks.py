# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Released files load through every door, with nothing left over."""

import copy

import golden_rule
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


@pytest.fixture
def told(monkeypatch):
    """What our hooks say."""
    lines = []
    monkeypatch.setattr(
        'mmdat.checkpoints.hooks.print_log',
        lambda message, **_: lines.append(message),
    )
    return lines


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (3,)])
@pytest.mark.parametrize('ours', [False, True])
def test_only_a_classifier_takes_the_norm_of_a_classifier(
    classification, out_indices, ours, told
):
    """As the authors' detectors: `cls_norm` is no `norms.3`."""
    entries = {k: v for k, v in classification.items() if 'cls_head' not in k}
    if ours:
        whole = DAT('dat_t', out_indices=(3,))
        whole.load_state_dict(entries)
        entries = whole.state_dict()
    model = DAT('dat_t', out_indices=out_indices)
    model.load_state_dict(entries, strict=True)
    own = model.norm3.state_dict()
    if out_indices == (3,):
        assert torch.equal(own['bias'], classification['cls_norm.norm.bias'])
        assert not told
    else:
        assert (own['weight'] == 1).all() and (own['bias'] == 0).all()
        assert len(told) == 1 and 'the output norms of this model' in told[0]
        assert ', '.join(map(str, out_indices)) in told[0]


def test_a_dense_file_keeps_its_norms(dense, told):
    model = DAT('dat_t')
    model.load_state_dict(dense)
    assert torch.equal(model.norm3.weight, dense['norms.3.norm.weight'])
    assert not told


SMALL = dict(
    embed_dims=[16, 32, 32, 64], depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4]
)


@pytest.mark.parametrize(('file', 'built'), [(64, 128), (128, 64)])
@pytest.mark.parametrize('whole', [False, True])
def test_dat_pp_takes_tables_as_they_are(file, built, whole, told):
    """A file at 384 may have been built at 224, and gives its numbers."""
    source = DAT(SMALL, img_size=file).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.2)
    model = DAT(SMALL, img_size=built).eval()
    parameter = model.stages[0].blocks[1].attn.rpe_table
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    entries = source.state_dict()
    if whole:
        Detector(model).load_state_dict(
            {f'backbone.{name}': value for name, value in entries.items()}
        )
    else:
        model.load_state_dict(entries, strict=True)
    table = model.stages[0].blocks[1].attn.rpe_table
    assert table is parameter and table.shape[1] == file // 2 - 1
    (line,) = told
    assert f'for images of {file} pixels' in line
    assert f'built for {built}' in line and 'Took 5 position' in line
    images = torch.rand(1, 3, 128, 96)
    for ours, theirs in zip(model(images), source(images), strict=True):
        assert torch.equal(ours, theirs)
    # The optimiser that knew the parameters trains them.
    sum(level.square().sum() for level in model(images)).backward()
    optimizer.step()
    assert not torch.equal(table, entries['stages.0.blocks.1.attn.rpe_table'])


def test_the_released_names_give_the_same(told):
    """B++ at 384, built at 224 as in the authors' yaml, without numbers."""
    with torch.device('meta'):
        model = DAT('dat_pp_b_384', out_indices=(3,))
    model.load_state_dict(
        {
            key: torch.empty(shape, device='meta')
            for key, shape in golden_rule.key_shapes(
                'keys-pp-dat_base'
            ).items()
        }
    )
    sides = [stage.blocks[1].attn.rpe_table.shape[1] for stage in model.stages]
    assert sides == [111, 55, 27, 13]
    assert 'images of 224 pixels and the model was built for 384' in told[0]


def test_v1_and_fixed_tables_are_resized(told):
    """What is tied to a resolution; the authors' v1 model at 384 is."""
    for settings in (dict(family='dat'), dict(position_bias='fixed')):
        arch = dict(SMALL, **settings)
        entries = DAT(arch, img_size=64).state_dict()
        model = DAT(arch, img_size=128)
        shapes = {k: v.shape for k, v in model.state_dict().items()}
        model.load_state_dict(entries)
        assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    assert len(told) == 2 and all('Resized' in line for line in told)


def test_torch_is_left_as_it_was():
    """No hook that runs for each module of the process."""
    hooks = nn.modules.module
    model = Detector(DAT(SMALL))
    assert not hooks._global_module_registration_hooks
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert not model._load_state_dict_pre_hooks


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
