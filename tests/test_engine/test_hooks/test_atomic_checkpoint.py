# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os

import pytest
import torch
import toy
from mmengine.fileio import LocalBackend

from mmdat.engine.hooks.atomic_checkpoint import WholeFilesBackend
from mmdat.utils.errors import UserError

FULL = '/dev/full'  # where every write finds no space


def hooks(kind='mmdat.AtomicCheckpointHook', **kwargs):
    return dict(checkpoint=dict(type=kind, **kwargs))


def names(folder, pattern='*.pth*'):
    return sorted(path.name for path in folder.glob(pattern))


def test_a_file_is_written(tmp_path):
    path = tmp_path / 'new' / 'a.pth'
    WholeFilesBackend().put(b'whole', path)
    assert path.read_bytes() == b'whole' and names(path.parent) == ['a.pth']
    WholeFilesBackend().put(b'other', str(path))
    assert path.read_bytes() == b'other' and names(path.parent) == ['a.pth']


@pytest.mark.skipif(not os.path.exists(FULL), reason='needs /dev/full')
def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'before')
    (tmp_path / 'a.pth.part').symlink_to(FULL)
    with pytest.raises(UserError, match='a.pth could not .*No space left'):
        WholeFilesBackend().put(b'after', path)
    assert path.read_bytes() == b'before' and names(tmp_path) == ['a.pth']


def test_an_interruption_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupt(_):
        assert names(tmp_path) == ['a.pth', 'a.pth.part']
        raise KeyboardInterrupt

    path = tmp_path / 'a.pth'
    path.write_bytes(b'before')
    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        WholeFilesBackend().put(b'after', path)
    assert path.read_bytes() == b'before' and names(tmp_path) == ['a.pth']


SETTINGS = [
    (dict(interval=1, max_keep_ckpts=1), dict(epochs=3)),
    (dict(interval=1, max_keep_ckpts=2, save_best='acc'), dict(epochs=4)),
    (dict(interval=2, by_epoch=False, max_keep_ckpts=2), dict(iterations=7)),
    (dict(interval=2, by_epoch=False, save_last=False), dict(iterations=5)),
]


@pytest.mark.parametrize(('settings', 'length'), SETTINGS)
def test_the_same_files_are_kept_as_by_mmengine(settings, length, tmp_path):
    kept = {}
    for kind in ('CheckpointHook', 'mmdat.AtomicCheckpointHook'):
        folder = tmp_path / kind
        run = toy.runner(
            folder, hooks(kind, **settings), validate=True, **length
        )
        run.train()
        note = (folder / 'last_checkpoint').read_text()
        kept[kind] = (names(folder), note.replace(kind, ''))
    plain, atomic = kept.values()
    assert plain == atomic and len(plain[0]) > 0


class Failing(WholeFilesBackend):
    """The disk is full from a certain file on."""

    name = ''

    def put(self, obj, filepath):
        if self.name in str(filepath):
            raise UserError('full')
        super().put(obj, filepath)


@pytest.mark.parametrize(
    ('name', 'left'),
    [
        ('epoch_3', ['best_acc_epoch_2.pth', 'epoch_2.pth']),
        ('best_acc_epoch_2', ['best_acc_epoch_1.pth', 'epoch_2.pth']),
    ],
)
def test_nothing_is_removed_before_its_successor_is_there(
    name, left, tmp_path, monkeypatch
):
    from mmengine.fileio import backends

    table = backends.registry_utils.backends
    monkeypatch.setitem(table, 'mmdat.whole_files', Failing)
    monkeypatch.setattr(Failing, 'name', name)
    settings = hooks(interval=1, max_keep_ckpts=1, save_best='acc')
    run = toy.runner(tmp_path, settings, epochs=4, validate=True)
    with pytest.raises(UserError):
        run.train()
    assert names(tmp_path) == left
    for file in left:
        torch.load(tmp_path / file, weights_only=False)
    note = (tmp_path / 'last_checkpoint').read_text()
    assert note == str(tmp_path / 'epoch_2.pth')


@pytest.mark.skipif(not os.path.exists(FULL), reason='needs /dev/full')
def test_a_full_disk_for_the_note_of_the_last_one(tmp_path):
    (tmp_path / 'last_checkpoint').symlink_to(FULL)
    run = toy.runner(tmp_path, hooks(interval=1), epochs=2)
    with pytest.raises(UserError, match='No space left'):
        run.train()
    assert names(tmp_path) == ['epoch_1.pth']


def test_a_backend_of_the_user_is_kept(tmp_path):
    settings = hooks(interval=1, backend_args=dict(backend='local'))
    run = toy.runner(tmp_path, settings, epochs=1)
    run.train()
    hook = run.hooks[-1]
    assert type(hook.file_backend) is LocalBackend
    assert names(tmp_path) == ['epoch_1.pth']


def test_a_missing_metric_is_told_and_the_others_count(tmp_path, monkeypatch):
    told = []
    settings = dict(interval=1, max_keep_ckpts=1, save_best=['acc', 'mAP'])
    run = toy.runner(tmp_path, hooks(**settings), validate=True, epochs=2)
    monkeypatch.setattr(run.logger, 'warning', lambda m, *_: told.append(m))
    run.train()
    assert names(tmp_path) == ['best_acc_epoch_2.pth', 'epoch_2.pth']
    told = [message for message in told if 'save_best' in message]
    assert len(told) == 1 and 'names mAP' in told[0]
    assert '(it computes acc)' in told[0]


def test_the_best_of_another_work_dir_stays(tmp_path):
    """Resumed from there, a training finds a better one of its own."""
    settings = dict(interval=1, max_keep_ckpts=1, save_best='acc')
    first, second = tmp_path / 'first', tmp_path / 'second'
    toy.runner(first, hooks(**settings), validate=True, epochs=2).train()
    run = toy.runner(
        second,
        hooks(**settings),
        validate=True,
        epochs=5,
        load_from=str(first / 'epoch_2.pth'),
        resume=True,
    )
    run.train()
    assert names(first) == ['best_acc_epoch_2.pth', 'epoch_2.pth']
    assert names(second) == ['best_acc_epoch_5.pth', 'epoch_5.pth']
