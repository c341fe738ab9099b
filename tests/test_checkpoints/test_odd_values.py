# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Entries that torch copies and are no weights; names that are no files."""

import os
import zipfile

import pytest
import torch

from mmdat import DAT
from mmdat.checkpoints.fitting import Misfit, load_and_compare
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.utils.errors import UserError

ARCH = dict(embed_dims=[8, 8, 16, 16], depths=1, num_heads=2)


@pytest.fixture(scope='module')
def model():
    return DAT(ARCH, img_size=32)


NAME = 'patch_embed.conv1.weight'


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize(
    ('change', 'field'),
    [
        (lambda value: value.long(), 'unsuited'),
        (lambda value: value > 0, 'unsuited'),
        (lambda value: value.to(torch.complex64), 'unsuited'),
        (lambda value: value.clone().fill_(float('nan')), 'infinite'),
        (
            lambda value: value.index_fill(0, torch.tensor(1), 1e999),
            'infinite',
        ),
    ],
)
def test_what_is_no_weight_is_named(change, field, prefix, model):
    state = {prefix + k: v.clone() for k, v in model.state_dict().items()}
    assert not load_and_compare(model, dict(state)).is_fatal
    state[prefix + NAME] = change(state[prefix + NAME])
    misfit = load_and_compare(DAT(ARCH, img_size=32), state)
    assert getattr(misfit, field) == (NAME,) and misfit.is_fatal
    assert f'({NAME})' in str(misfit)


def test_half_precision_is_a_weight(model):
    state = {k: v.half() for k, v in model.state_dict().items()}
    assert not load_and_compare(DAT(ARCH, img_size=32), state).is_fatal


def test_weights_compared_with_shapes_alone(model, recwarn):
    """As before a training: nothing is copied, and torch need not say so."""
    with torch.device('meta'):
        shapes = DAT(ARCH, img_size=32)
    state = model.state_dict()
    assert load_and_compare(shapes, dict(state)) == Misfit()
    state[NAME] = state[NAME] * float('nan')
    assert load_and_compare(shapes, state).infinite == (NAME,)
    assert not recwarn.list


@pytest.mark.parametrize(
    'name', ['x' * 300, '~nobody_of_that_name/x.pth', 'a\0b', 'no.pth']
)
def test_names_that_are_no_files(name):
    for kind in (UserError, OSError):
        with pytest.raises(kind, match='There is no checkpoint'):
            load_checkpoint_file(name)


def test_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / 'pipe.pth')
    for name in (tmp_path / 'pipe.pth', '/dev/null'):
        with pytest.raises(UserError, match='is a pipe or device'):
            load_checkpoint_file(name)


def test_members_far_larger_than_stored(tmp_path):
    path = tmp_path / 'bomb.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('archive/data.pkl', bytes(1 << 23))
    with pytest.raises(UserError, match='its members claim 8388608 bytes'):
        load_checkpoint_file(path)


def test_names_with_control_characters(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'a\x1b[2Jb': torch.ones(1)}, path)
    with pytest.raises(UserError, match='plain text') as caught:
        load_checkpoint_file(path)
    assert str(caught.value).isprintable()


def test_a_header_that_begins_like_a_page(tmp_path):
    pytest.importorskip('safetensors')
    path = tmp_path / 'x.safetensors'
    path.write_bytes(b'<\x01\0\0\0\0\0\0{')
    with pytest.raises(UserError, match='not a checkpoint that safetensors'):
        load_checkpoint_file(path)
