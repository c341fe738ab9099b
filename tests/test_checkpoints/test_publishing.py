# Copyright (c) mmdat contributors. Apache-2.0 licence.
import hashlib
import json
import sys

import pytest
import torch

from mmdat.checkpoints import publishing
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.checkpoints.publishing import publish
from mmdat.utils.errors import UserError

WEIGHTS = {'backbone.a': torch.arange(6.0).view(2, 3), 'b': torch.tensor(3)}
META = dict(epoch=12, dataset_meta=dict(classes=('one', 'two')))
FORMATS = ['.pth', '.safetensors']


def needs(suffix):
    if suffix == '.safetensors':
        pytest.importorskip('safetensors')


@pytest.mark.parametrize('suffix', FORMATS)
def test_the_name_ends_in_the_hash_of_the_file(tmp_path, suffix):
    needs(suffix)
    path = publish(WEIGHTS, META, tmp_path / 'new' / f'dat.x{suffix}')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path == tmp_path / 'new' / f'dat.x-{digest[:8]}{suffix}'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('suffix', FORMATS)
def test_what_is_written_is_read(tmp_path, suffix):
    needs(suffix)
    found = load_checkpoint_file(
        publish(WEIGHTS, META, tmp_path / f'x{suffix}')
    )
    torch.testing.assert_close(found['state_dict'], WEIGHTS)
    assert json.dumps(found['meta']) == json.dumps(META)
    shapes = load_checkpoint_file(
        publish(WEIGHTS, META, tmp_path / f'x{suffix}'), 'meta'
    )
    assert shapes['state_dict']['backbone.a'].is_meta


@pytest.mark.parametrize('suffix', FORMATS)
def test_the_same_content_gives_the_same_file(tmp_path, suffix):
    needs(suffix)
    first = publish(WEIGHTS, META, tmp_path / 'a' / f'x{suffix}')
    again = publish(dict(WEIGHTS), dict(META), tmp_path / 'b' / f'x{suffix}')
    assert first.name == again.name
    other = publish(WEIGHTS, {}, tmp_path / 'a' / f'x{suffix}')
    assert other.name != first.name


@pytest.mark.parametrize('error', [OSError(28, 'No space left'), MemoryError])
def test_nothing_half_written_is_left(tmp_path, monkeypatch, error):
    def fail(content, file):
        file.write(b'half of it')
        raise error

    monkeypatch.setattr(publishing.torch, 'save', fail)
    expected = UserError if isinstance(error, OSError) else MemoryError
    with pytest.raises(expected) as caught:
        publish(WEIGHTS, META, tmp_path / 'x.pth')
    if expected is UserError:
        assert 'x.pth could not be written' in str(caught.value)
        assert 'No space left' in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', FORMATS)
def test_files_are_readable_by_whom_the_user_lets_read(tmp_path, suffix):
    needs(suffix)
    (tmp_path / 'other').touch()
    path = publish(WEIGHTS, META, tmp_path / f'x{suffix}')
    assert path.stat().st_mode == (tmp_path / 'other').stat().st_mode


@pytest.mark.parametrize('name', ['x.onnx', 'x', ''])
def test_other_formats_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r'must end in \.pth or \.safetensors'):
        publish(WEIGHTS, META, tmp_path / name)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(UserError, match='pip install safetensors'):
        publish(WEIGHTS, META, tmp_path / 'x.safetensors')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'y.safetensors').write_bytes(b'something')
    with pytest.raises(UserError, match='pip install safetensors'):
        load_checkpoint_file(tmp_path / 'y.safetensors')


@pytest.mark.parametrize(
    ('content', 'message'),
    [(b'<html>', 'is a web page'), (b'12345678 no', 'that safetensors wrote')],
)
def test_damaged_safetensors_are_refused(tmp_path, content, message):
    needs('.safetensors')
    (tmp_path / 'x.safetensors').write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_checkpoint_file(tmp_path / 'x.safetensors')
