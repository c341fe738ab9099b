# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmdat.checkpoints.loading import load_checkpoint_file, use_safe_loading
from mmdat.utils.errors import UserError


class RunsCode:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


class ReadsGlobals:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_reads_what_training_leaves(tmp_path):
    history = HistoryBuffer()
    for value in (1.0, 3.0):
        history.update(value)
    saved = dict(
        state_dict=dict(weight=torch.rand(3, 4)),
        message_hub=dict(log_scalars=dict(loss=history)),
        meta=dict(seed=np.int64(3), share=np.float64(0.5), cut=slice(1, 2)),
        array=np.arange(4, dtype=np.uint8),
    )
    torch.save(saved, tmp_path / 'epoch_1.pth')
    found = load_checkpoint_file(tmp_path / 'epoch_1.pth')
    torch.testing.assert_close(found['state_dict'], saved['state_dict'])
    assert found['message_hub']['log_scalars']['loss'].mean() == 2
    assert found['meta'] == saved['meta']
    assert (found['array'] == saved['array']).all()


@pytest.mark.parametrize('old_format', [False, True])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, old_format):
    mark, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    content = dict(state_dict=dict(weight=torch.ones(2)), x=RunsCode(mark))
    if old_format:
        path.write_bytes(pickle.dumps(dict(x=RunsCode(mark)), protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match='asks to run posix.system .*refused'):
        load_checkpoint_file(path)
    assert not mark.exists()


def test_getattr_reads_statistics_of_logs_only(tmp_path):
    torch.save(dict(x=ReadsGlobals()), tmp_path / 'x.pth')
    with pytest.raises(UserError, match='getattr'):
        load_checkpoint_file(tmp_path / 'x.pth')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>Sign in</html>', 'is a web page'),
        (b'not a checkpoint', 'not a checkpoint that torch.save wrote'),
        (b'PK\x03\x04 cut off', 'not a checkpoint that torch.save wrote'),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint_file(path)
    assert str(path) in str(caught.value)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / 'cut.pth'
    torch.save(dict(weight=torch.rand(100)), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match='damaged .*download or copy it again'):
        load_checkpoint_file(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match='no checkpoint .*nothing.pth'):
        load_checkpoint_file(tmp_path / 'nothing.pth')
    with pytest.raises(UserError, match='is a folder'):
        load_checkpoint_file(tmp_path)


def test_mmengine_reads_through_it(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    monkeypatch.setattr(
        CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes)
    )
    use_safe_loading()
    mark = tmp_path / 'ran'
    torch.save(dict(x=RunsCode(mark)), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match='refused'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'evil.pth'))
    # What comes by other ways, as downloads do, is refused by torch itself.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert not mark.exists()
