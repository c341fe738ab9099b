# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Our models in timm: factory, features, optimiser groups, checkpoints."""

import subprocess
import sys

import pytest
import released
import torch

import mmdat

timm = pytest.importorskip('timm')

TINY = 'dat_pp_tiny'


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(TINY, img_size=64, **kwargs).eval()


ORDERS = [
    'import mmdat; assert "timm" not in sys.modules; import timm',
    'import timm, mmdat',
]


@pytest.mark.parametrize('order', ORDERS)
def test_registered_in_either_order(order):
    code = f"""
import sys
{order}
assert timm.list_models('dat_*') == mmdat.list_models()
assert not any('mmdat' in type(f).__module__ for f in sys.meta_path)
assert 'mmdat' not in str(timm.models.__spec__.loader), timm.models.__spec__
"""
    done = subprocess.run(
        [sys.executable, '-W', 'error::UserWarning', '-c', code],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_same_model_as_ours():
    ours = mmdat.create_model(TINY, img_size=64, num_classes=4).eval()
    theirs = create(num_classes=4)
    assert theirs.default_cfg['architecture'] == TINY
    assert theirs.default_cfg['pool_size'] == (7, 7)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(theirs(x), ours(x))
    timm.data.resolve_model_data_config(theirs)


@pytest.mark.parametrize('kind', [None, 'hook', 'fx'])
def test_features(kind):
    cls = {} if kind is None else dict(feature_cls=kind)
    model = create(features_only=True, out_indices=(1, -2), **cls)
    assert model.feature_info.channels() == [128, 256]
    assert model.feature_info.reduction() == [8, 16]
    maps = model(torch.rand(1, 3, 64, 96))
    axis = 1 if kind is None else 3
    assert [m.shape[axis] for m in maps] == [128, 256]
    assert str(model.output_fmt).endswith('NCHW' if kind is None else 'NHWC')
    if kind is None:  # without what these maps do not need
        assert sum(p.numel() for p in model.parameters()) < 17e6


def test_a_list_of_modules_is_refused():
    with pytest.raises(ValueError, match="'getter', 'hook' or 'fx'"):
        create(features_only=True, feature_cls='list')


def test_layer_decay_and_weight_decay():
    from timm.optim import create_optimizer_v2

    model = create()
    optimizer = create_optimizer_v2(
        model, 'adamw', lr=1.0, weight_decay=0.05, layer_decay=0.5
    )
    names = {id(p): n for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            depth, layers = model.backbone.get_layer_depth(name, 'backbone.')
            rate = group['lr'] * group.get('lr_scale', 1.0)
            assert rate == pytest.approx(0.5 ** (layers - 1 - depth)), name
            plain = parameter.ndim == 1 or name.endswith(('rpb', 'rpe_table'))
            assert group['weight_decay'] == (0 if plain else 0.05), name


def test_weights_from_a_file(tmp_path):
    path = tmp_path / 'released.pth'
    entries = released.state_dict('keys-pp-dat_tiny')
    released.save_classification(path, entries)
    model = timm.create_model(
        TINY,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(path)),
        num_classes=3,
        in_chans=1,
    )
    norm = entries['cls_norm.norm.weight']
    torch.testing.assert_close(model.backbone.norm3.weight, norm)
    assert model(torch.rand(1, 1, 32, 32)).shape == (1, 3)
    with pytest.raises(RuntimeError, match='No pretrained weights'):
        timm.create_model(TINY, pretrained=True)
