# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Files of weights for models by name; what is adapted is said."""

import pytest
import released
import torch

import mmdat
from mmdat.checkpoints import hooks
from mmdat.utils.errors import UserError
from mmdat.zoo import weights

TINY = dict(
    embed_dims=[8, 16, 16, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4]
)


@pytest.fixture
def told(monkeypatch):
    lines = []
    for module in (weights, hooks):
        monkeypatch.setattr(
            module, 'print_log', lambda message, **_: lines.append(message)
        )
    return lines


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    model = mmdat.create_model(TINY, num_classes=7, img_size=64)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'x.pth')
    return model.eval()


def test_a_released_classifier(tmp_path, told):
    path = tmp_path / 'dat_tiny_in1k_224.pth'
    entries = released.state_dict('keys-v1-dat_tiny')
    released.save_classification(path, entries)
    model = mmdat.create_model('dat_tiny', path)
    torch.testing.assert_close(
        model.get_classifier().weight, entries['cls_head.weight']
    )
    torch.testing.assert_close(
        model.backbone.norm3.weight, entries['cls_norm.norm.weight']
    )
    assert told == [f'Started from {path}.']

    told.clear()
    maps = mmdat.create_model(
        'dat_tiny', path, features_only=True, num_classes=5, in_chans=1
    )
    first = entries['patch_proj.0.weight']
    torch.testing.assert_close(
        maps.patch_embed.conv1.weight, first.sum(1, keepdim=True)
    )
    assert '3 input channels to 1' in told[-1]
    assert any('output norms of this model' in line for line in told)

    with pytest.raises(UserError, match='DAT-T for classification.*DAT-S'):
        mmdat.create_model('dat_small', path)


def test_what_fits_is_kept_and_the_rest_said(source, tmp_path, told):
    path = tmp_path / 'x.pth'
    same = mmdat.create_model(TINY, path, num_classes=7, img_size=64).eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(same(x), source(x))

    other = mmdat.create_model(
        dict(TINY, family='dat_pp'), path, num_classes=3, in_chans=5
    ).eval()
    assert 'classifier has 7 classes' in told[-1]
    assert '3 input channels to 5' in told[-1]
    assert any('position-bias tables' in line for line in told)
    # An image that fills channels as the kernel was repeated for.
    same_sum = x[:, [0, 1, 2, 0, 1]]
    kernel = source.backbone.patch_embed.conv1.weight[:, [0, 1, 2, 0, 1]]
    torch.testing.assert_close(
        other.backbone.patch_embed.conv1.weight, kernel * 3 / 5
    )
    assert other(same_sum).shape == (1, 3)


def test_a_file_without_a_classifier(source, tmp_path, told):
    torch.save(source.backbone.state_dict(), tmp_path / 'b.pth')
    model = mmdat.create_model(TINY, tmp_path / 'b.pth', img_size=64)
    assert 'holds no classifier' in told[-1]
    torch.testing.assert_close(
        model.backbone.norm3.weight, source.backbone.norm3.weight
    )


def test_broken_files_are_refused(source, tmp_path):
    entries = source.state_dict()
    entries['head.fc.bias'][0] = float('nan')
    torch.save(entries, tmp_path / 'nan.pth')
    with pytest.raises(UserError, match='classifier.*NaN'):
        mmdat.create_model(TINY, tmp_path / 'nan.pth', num_classes=7)
    del entries['backbone.patch_embed.conv1.weight']
    torch.save(entries, tmp_path / 'part.pth')
    with pytest.raises(UserError, match='missing'):
        mmdat.create_model(TINY, tmp_path / 'part.pth', num_classes=7)
    torch.save(dict(layer=torch.rand(3)), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='neither DAT nor DAT'):
        mmdat.create_model(TINY, tmp_path / 'other.pth')
