# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os

import pytest
import torch
from mmengine.config import Config

from mmdat.engine.resuming import set_resume
from mmdat.utils.errors import UserError


@pytest.fixture
def work(tmp_path):
    """A work dir with three checkpoints, the last of which is recorded."""
    for epoch in (1, 2, 3):
        path = tmp_path / f'epoch_{epoch}.pth'
        torch.save(dict(state_dict={}, meta=dict(epoch=epoch, seed=17)), path)
        os.utime(path, (epoch, epoch))
    note(tmp_path, tmp_path / 'epoch_3.pth')
    return tmp_path


def note(folder, text):
    (folder / 'last_checkpoint').write_text(str(text))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def resumed(folder, resume='auto', **settings):
    cfg = Config(dict(work_dir=str(folder), **settings))
    set_resume(cfg, resume)
    return cfg


def test_nothing_is_changed_unless_asked(work):
    cfg = resumed(work, None)
    assert 'resume' not in cfg and 'load_from' not in cfg


def test_the_recorded_one(work, capsys):
    note(work, work / 'epoch_2.pth')  # 3 is of an earlier training
    cfg = resumed(work)
    assert (cfg.resume, cfg.load_from) == (True, f'{work}/epoch_2.pth')
    assert capsys.readouterr().err == ''


def test_a_named_one(work):
    cfg = resumed(work, f'{work}/epoch_1.pth')
    assert (cfg.resume, cfg.load_from) == (True, f'{work}/epoch_1.pth')
    cfg = resumed(work, 'https://example.org/epoch_1.pth')
    assert (cfg.resume, cfg.load_from[:8]) == (True, 'https://')


def test_of_weights_and_checkpoints_the_latter(work):
    cfg = resumed(work, load_from='start.pth')
    assert (cfg.resume, cfg.load_from) == (True, f'{work}/epoch_3.pth')


@pytest.mark.parametrize('empty_note', [False, True])
@pytest.mark.parametrize('start', [None, 'start.pth'])
def test_a_first_run(start, empty_note, tmp_path):
    if empty_note:  # killed while it wrote that
        note(tmp_path, '')
    cfg = resumed(tmp_path / 'not_yet', load_from=start)
    assert (cfg.resume, cfg.load_from) == (False, start)
    cfg = resumed(tmp_path, load_from=start)
    assert (cfg.resume, cfg.load_from) == (False, start)


DAMAGE = {
    'truncated': truncate,
    'empty': lambda path: path.write_bytes(b''),
    'flipped': lambda path: path.write_bytes(
        path.read_bytes().replace(b'seed', b'sEed')
    ),
    'removed': lambda path: path.unlink(),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_one_is_passed_over(kind, work, capsys):
    DAMAGE[kind](work / 'epoch_3.pth')
    assert resumed(work).load_from == f'{work}/epoch_2.pth'
    said = capsys.readouterr().err
    assert said.startswith('warning: ') and said.count('\n') == 1
    assert f'{work}/epoch_3.pth' in said
    assert f'Going on from {work}/epoch_2.pth instead.' in said
    truncate(work / 'epoch_2.pth')
    assert resumed(work).load_from == f'{work}/epoch_1.pth'
    assert capsys.readouterr().err.count('warning: ') == 2


def test_one_process_warns(work, capsys, monkeypatch):
    truncate(work / 'epoch_3.pth')
    monkeypatch.setenv('RANK', '1')
    assert resumed(work).load_from == f'{work}/epoch_2.pth'
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('text', ['', None])
def test_without_a_note_the_newest(text, work):
    (work / 'last_checkpoint').unlink()
    if text is not None:
        note(work, text)
    (work / 'epoch_12.pth.part').write_bytes(b'half')
    torch.save({}, work / 'best_acc_epoch_3.pth')  # has no optimiser
    assert resumed(work).load_from == f'{work}/epoch_3.pth'


def test_a_work_dir_that_was_moved(work):
    note(work, '/elsewhere/epoch_3.pth')
    assert resumed(work).load_from == f'{work}/epoch_3.pth'


def test_checkpoints_in_another_folder(work, tmp_path_factory):
    other = tmp_path_factory.mktemp('out_dir')
    for path in work.glob('*.pth'):
        path.rename(other / path.name)
    note(work, other / 'epoch_3.pth')
    truncate(other / 'epoch_3.pth')
    assert resumed(work).load_from == f'{other}/epoch_2.pth'


@pytest.mark.parametrize('name', ['s3://bucket/epoch_3.pth', '{}/epoch_4'])
def test_what_mmengine_reads_itself(name, work):
    (work / 'epoch_4').mkdir()  # as DeepSpeed saves
    note(work, name.format(work))
    assert resumed(work).load_from == name.format(work)


def test_nothing_is_started_over_silently(work):
    for path in work.glob('*.pth'):
        truncate(path)
    with pytest.raises(UserError, match='epoch_3.pth is not .*no other') as e:
        resumed(work)
    assert '--resume FILE' in str(e.value)


@pytest.mark.parametrize(
    ('given', 'used'),
    [
        ({}, 17),
        (dict(randomness=dict(seed=None, deterministic=True)), 17),
        (dict(randomness=dict(seed=0)), 0),
    ],
)
@pytest.mark.parametrize('resume', ['auto', '{}/epoch_2.pth'])
def test_the_seed_goes_on(resume, given, used, work):
    cfg = resumed(work, resume.format(work), **given)
    assert cfg.randomness.seed == used
    assert cfg.randomness.get('deterministic') == given.get(
        'randomness', {}
    ).get('deterministic')
