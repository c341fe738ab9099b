# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What only the reader for PyTorch before 2.6 could get wrong.

All else is tested with the files of the other tests, which it reads as well.
"""

import io
import pickle
import zipfile

import pytest
import torch

from mmdat.checkpoints import old_torch
from mmdat.checkpoints.loading import load_checkpoint_file
from mmdat.utils.errors import UserError

pytestmark = pytest.mark.usefixtures('torch_version')


def save(path, pickled):
    """A file of torch.save with another pickle in it."""
    file = io.BytesIO()
    torch.save({}, file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, 'w') as new:
        for name in old.namelist():
            inside = name.endswith('/data.pkl')
            new.writestr(name, pickled if inside else old.read(name))


def test_the_other_pickle_is_the_one_that_is_read(tmp_path):
    save(tmp_path / 'x.pth', pickle.dumps(dict(epoch=3), protocol=2))
    assert load_checkpoint_file(tmp_path / 'x.pth') == dict(epoch=3)


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        ('torch._utils', '_rebuild_tensor_v2'),
        ('torch._utils', '_rebuild_parameter'),
        ('torch', 'Tensor'),
        ('mmengine.logging.history_buffer', 'HistoryBuffer'),
    ],
)
def test_a_state_changes_nothing_that_is_shared(tmp_path, module, name):
    """Such as an attribute of a function that every reader calls."""
    state = pickle.dumps((None, dict(hacked=1)), protocol=2)[2:-1]
    pickled = b'\x80\x02' + f'c{module}\n{name}\n'.encode() + state + b'b.'
    save(
        tmp_path / 'x.pth',
        b'\x80\x02}X\x01\x00\x00\x00x' + pickled[2:-1] + b's.',
    )
    owner = pickle.loads(pickled[:2] + f'c{module}\n{name}\n.'.encode())
    with pytest.raises(UserError, match='damaged'):
        load_checkpoint_file(tmp_path / 'x.pth')
    assert not hasattr(owner, 'hacked')


def test_bytes_are_read_and_no_other_codec_is_called(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(dict(words=b'\x00\xff'), path)
    assert load_checkpoint_file(path)['words'] == b'\x00\xff'
    if not old_torch.is_old():
        return
    call = b'c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR'
    save(path, b'\x80\x02}X\x01\x00\x00\x00x' + call + b's.')
    with pytest.raises(UserError, match='bytes encoded as rot13'):
        load_checkpoint_file(path)
