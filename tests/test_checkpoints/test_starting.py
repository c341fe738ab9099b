# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Backbones that start from a file, as a whole or in part."""

import pytest
import torch
from torch import nn
from versions import needs_torch

from mmdat import DAT
from mmdat.checkpoints import starting
from mmdat.checkpoints.starting import adapt_input
from mmdat.utils.errors import SettingError, UserError

ARCH = dict(
    embed_dims=[16, 32, 32, 64], depths=[1] * 4, num_heads=[1, 2, 2, 4]
)


@pytest.fixture(scope='module')
def source():
    torch.manual_seed(0)
    return DAT(ARCH)


@pytest.fixture
def save(tmp_path):
    def save(entries, **around):
        path = tmp_path / 'x.pth'
        torch.save(dict(state_dict=entries, **around), path)
        return str(path)

    return save


@pytest.fixture
def told(monkeypatch):
    lines = []
    monkeypatch.setattr(
        starting, 'print_log', lambda message, **_: lines.append(message)
    )
    return lines


def started(path, arch=ARCH, strict=True, prefix=None, **settings):
    init_cfg = dict(type='Pretrained', checkpoint=path)
    if prefix is not None:
        init_cfg['prefix'] = prefix
    if not strict:
        init_cfg['strict'] = False
    model = DAT(arch, **settings, init_cfg=init_cfg)
    # As inside a model, so that nobody writes of each parameter.
    notes = {
        p: dict(init_info='', tmp_mean_value=p.data.mean())
        for p in model.parameters()
    }
    nn.Module.__setattr__(model, '_params_init_info', notes)
    model.init_weights()
    note = notes[model.patch_embed.conv1.weight]['init_info']
    assert note == f'Started from {path}'
    assert model.init_cfg == init_cfg
    return model


def assert_same(model, source, but=()):
    own, theirs = model.state_dict(), source.state_dict()
    for name in own.keys() & theirs.keys() - set(but):
        assert torch.equal(own[name], theirs[name]), name


@pytest.mark.parametrize(
    ('place', 'prefix'),
    [
        ('teacher.backbone.', 'teacher.'),
        ('teacher.backbone.', 'teacher.backbone.'),
        ('student.', 'student'),
        ('_orig_mod.', '_orig_mod.'),
        ('_orig_mod.backbone.', '_orig_mod.'),
        ('backbone._orig_mod.', 'backbone._orig_mod.'),
        ('ema.module.backbone.', 'ema.module'),
    ],
)
def test_a_prefix_is_taken_and_asked_for(save, source, place, prefix):
    path = save({place + k: v for k, v in source.state_dict().items()})
    assert_same(started(path, prefix=prefix), source)
    with pytest.raises(UserError, match=f"other names: .*prefix='{place}'"):
        started(path)
    with pytest.raises(UserError, match=f"with wrong.; .*prefix='{place}'"):
        started(path, prefix='wrong')


def test_all_places_are_offered(save, source):
    entries = {
        f'{place}.backbone.{k}': v
        for place in ('student', 'teacher')
        for k, v in source.state_dict().items()
    }
    with pytest.raises(
        UserError,
        match="prefix='student.backbone.' or prefix='teacher.backbone.'",
    ):
        started(save(entries))


def test_a_file_of_something_else(save):
    path = save({'conv1.weight': torch.ones(2), 'fc.bias': torch.ones(1)})
    with pytest.raises(UserError, match='does not fit the backbone'):
        started(path)
    with pytest.raises(UserError, match='neither DAT nor DAT'):
        started(path, prefix='backbone')
    with pytest.raises(UserError, match='Nothing of .*x.pth fits'):
        started(path, strict=False)


def timm_adapted(weight, channels):
    """Input channel c of the new kernel, one after the other."""
    old = weight.shape[1]
    if channels == 1:
        return sum(weight[:, i] for i in range(old))[:, None]
    columns = [weight[:, c % old] * old / channels for c in range(channels)]
    return torch.stack(columns, 1)


@pytest.mark.parametrize('channels', [1, 2, 4, 6, 7])
def test_input_channels_are_adapted_as_by_timm(save, source, channels, told):
    path = save(source.state_dict())
    with pytest.raises(UserError, match='strict=False to take what fits'):
        started(path, in_channels=channels)
    model = started(path, in_channels=channels, strict=False)
    kernel = source.patch_embed.conv1.weight.detach()
    torch.testing.assert_close(
        model.patch_embed.conv1.weight.detach(),
        timm_adapted(kernel, channels),
    )
    assert_same(model, source, ['patch_embed.conv1.weight'])
    (line,) = told
    assert f'adapted from 3 input channels to {channels}' in line


def test_a_grey_file_starts_a_coloured_model():
    kernel = torch.rand(4, 1, 3, 3)
    torch.testing.assert_close(
        adapt_input(kernel, 3), kernel.expand(4, 3, 3, 3) / 3
    )


@pytest.mark.parametrize(
    ('depths', 'message'),
    [
        ([1, 2, 1, 1], 'entries (stages.1.blocks.1.local_perception'),
        ([1, 1, 1, 1], ''),
    ],
)
def test_another_depth(save, source, depths, message, told):
    path = save(source.state_dict())
    model = started(path, dict(ARCH, depths=depths), strict=False)
    assert_same(model, source)
    assert message in told[-1]
    assert ('of the model start new' in told[-1]) == bool(message)


def test_fewer_blocks_leave_the_rest_out(save, source, told):
    deep = DAT(dict(ARCH, depths=[1, 2, 1, 1]))
    model = started(save(deep.state_dict()), strict=False)
    assert_same(model, deep)
    assert 'of the file left out' in told[-1]


def test_another_width_is_left_out_by_name(save, source, told):
    model = started(save(source.state_dict()), strict=False, mlp_ratio=3)
    assert_same(
        model, source, [k for k in source.state_dict() if '.mlp.' in k]
    )
    assert '20 entries (stages.0.blocks.0.mlp.fc1.weight' in told[-1]


def test_other_initialisers_go_first(save, source):
    """And are mmengine's; the file has the last word."""
    path = save(source.state_dict())
    model = DAT(
        ARCH,
        init_cfg=[
            dict(type='Pretrained', checkpoint=path),
            dict(type='Constant', layer='Linear', val=7),
        ],
    )
    model._params_init_info = {
        p: dict(init_info='', tmp_mean_value=p.mean())
        for p in model.parameters()
    }
    model.init_weights()
    assert_same(model, source)


@pytest.mark.parametrize('odd', [float('nan'), float('inf')])
def test_what_is_no_number_is_not_taken_in_part(save, source, odd):
    entries = source.state_dict()
    name = 'stages.1.blocks.0.mlp.fc1.bias'
    entries[name] = torch.full_like(entries[name], odd)
    with pytest.raises(UserError, match=f'does not hold weights: .*{name}'):
        started(save(entries), strict=False)


@pytest.mark.parametrize('place', ['model_ema', 'ema_state_dict'])
def test_weights_in_a_dict_of_the_file(tmp_path, source, place):
    entries = {f'module.{k}': v for k, v in source.state_dict().items()}
    path = str(tmp_path / 'x.pth')
    torch.save({place: entries, 'epoch': 3}, path)
    with pytest.raises(UserError, match=f"other names: .*prefix='{place}.'"):
        started(path)
    assert_same(started(path, prefix=place), source)
    torch.save({place: entries, 'state_dict': {}}, path)
    assert_same(started(path, prefix=place), source)


@needs_torch('2.4')  # older ones cannot save it
def test_weights_in_float8(save, source):
    small = {
        k: v.to(torch.float8_e4m3fn) for k, v in source.state_dict().items()
    }
    model = started(save(small))
    name = 'stages.0.blocks.0.mlp.fc1.weight'
    assert torch.equal(model.state_dict()[name], small[name].float())


def test_other_initialisation_comes_before_the_file(save, source):
    path = save(source.state_dict())
    parts = [
        dict(type='Pretrained', checkpoint=path),
        dict(type='Constant', layer='LayerNorm', val=3.0),
    ]
    model = DAT(ARCH, init_cfg=parts)
    model.init_weights()
    assert_same(model, source)
    assert model.init_cfg == parts


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(), 'path or address of a file; got None'),
        (dict(checkpoint=5), 'path or address of a file; got 5'),
        (dict(checkpoint=' '), 'path or address of a file'),
        (dict(checkpoint='x', strict='false'), "True or False; got 'false'"),
        (dict(checkpoint='x', prefix=3), 'text or None; got 3'),
        (dict(checkpoint='x', ckpt='y'), "may hold .*; got 'ckpt'"),
    ],
)
def test_settings_that_name_no_file(settings, words):
    with pytest.raises(SettingError, match=words):
        DAT(ARCH, init_cfg=dict(type='Pretrained', **settings))


@pytest.mark.parametrize(
    'address', ['http://127.0.0.1:9/x.pth', 'open-mmlab://no_such_model']
)
def test_addresses_that_cannot_be_read(address):
    with pytest.raises(UserError, match='cannot be read .*; download the'):
        started(address)


def test_the_file_is_read_on_the_cpu(save, source):
    path = save(source.state_dict())
    settings = dict(type='Pretrained', checkpoint=path, map_location='cuda:7')
    model = DAT(ARCH, init_cfg=settings)
    model.init_weights()
    assert_same(model, source)


@pytest.mark.parametrize(
    'kernel',
    [torch.ones(3), torch.ones(()), torch.ones(16, 0, 4, 4)],
    ids=lambda x: str(tuple(x.shape)),
)
def test_a_first_kernel_of_another_form_is_left_out(
    save, source, told, kernel
):
    name = 'patch_embed.conv1.weight'
    path = save({**source.state_dict(), name: kernel})
    init_cfg = dict(type='Pretrained', checkpoint=path, strict=False)
    model = DAT(ARCH, init_cfg=init_cfg)
    model.init_weights()
    assert_same(model, source, but=[name])
    assert f'({name}) of the file left out' in told[0]


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize(
    'wrapper', ['_orig_mod', '_checkpoint_wrapped_module']
)
def test_blocks_that_were_wrapped(save, source, wrapper, strict):
    inside = f'blocks.0.{wrapper}.'
    entries = {
        name.replace('blocks.0.', inside): value
        for name, value in source.state_dict().items()
    }
    assert_same(started(save(entries), strict=strict), source)
    model = DAT(ARCH)
    nn.Module.load_state_dict(model, entries)
    assert_same(model, source)


@pytest.mark.parametrize(
    ('there', 'here'), [('table', 'fixed'), ('fixed', 'table')]
)
def test_tables_of_another_kind_of_bias(save, told, there, here):
    path = save(DAT(ARCH, img_size=128, position_bias=there).state_dict())
    settings = dict(img_size=128, position_bias=here)
    with pytest.raises(UserError, match='of another shape .*rpe_table'):
        started(path, **settings)
    started(path, strict=False, **settings)
    assert 'rpe_table' in told[0] and 'left out' in told[0]
