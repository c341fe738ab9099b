# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os

import pytest
import torch
from mmengine.config import Config

from mmdat.engine.resuming import (
    check_groups,
    check_resumable,
    set_resume,
)
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
    assert f'Continuing from {work}/epoch_2.pth instead.' in said
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


def test_a_work_dir_that_was_copied(work):
    """The copies have the times of the copying, in any order."""
    torch.save(dict(state_dict={}), work / 'epoch_9.pth')  # of another run
    for time, epoch in enumerate((3, 9, 2, 1)):
        os.utime(work / f'epoch_{epoch}.pth', (time, time))
    note(work, '/elsewhere/epoch_3.pth')
    assert resumed(work).load_from == f'{work}/epoch_3.pth'
    truncate(work / 'epoch_3.pth')
    assert resumed(work).load_from == f'{work}/epoch_2.pth'


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


WHOLE = dict(
    state_dict={},
    meta=dict(epoch=2, iter=8, seed=3),
    message_hub={},
    optimizer=dict(
        state={},
        param_groups=[dict(lr=1, betas=(0.9, 0.99), eps=1, params=[])],
    ),
)
STRANGE = {
    'weights': (dict(meta=None, message_hub=None), 'has no meta'),
    'meta list': (dict(meta=[1]), 'meta by name, but a list'),
    'meta text': (dict(meta='x'), 'meta by name, but a str'),
    'no epoch': (dict(meta=dict(iter=1)), 'no meta.epoch'),
    'epoch text': (dict(meta=dict(epoch='a', iter=1)), "meta.epoch='a'"),
    'seed text': (dict(meta=dict(epoch=1, iter=1, seed='x')), "seed='x'"),
    'no hub': (dict(message_hub=None), 'has no message_hub'),
    'optimiser list': (dict(optimizer=[1]), 'in .* it is a list'),
}


def resumable(content, folder, kind='AdamW', **settings):
    path = folder / 'x.pth'
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    cfg = Config(
        dict(
            work_dir=str(folder),
            optim_wrapper=dict(optimizer=dict(type=kind, lr=1, **settings)),
        )
    )
    check_resumable(cfg, set_resume(cfg, str(path)))


@pytest.mark.parametrize('kind', STRANGE)
def test_what_is_no_state_of_a_training(kind, tmp_path):
    changes, words = STRANGE[kind]
    with pytest.raises(UserError, match=words) as caught:
        resumable({**WHOLE, **changes}, tmp_path)
    assert f'load_from={tmp_path}/x.pth' in str(caught.value)


def test_another_optimiser(tmp_path, capsys):
    with pytest.raises(UserError, match='lacks .*momentum'):
        resumable(WHOLE, tmp_path, 'SGD', momentum=0.9)
    whole = torch.optim.AdamW([torch.zeros(1)], lr=1).state_dict()
    resumable({**WHOLE, 'optimizer': whole}, tmp_path)
    assert capsys.readouterr().err == ''
    resumable({**WHOLE, 'optimizer': None}, tmp_path)
    assert 'a new one is used' in capsys.readouterr().err


@pytest.mark.parametrize(
    'content', [b'\x80\xff\x00', b'x' * 5000, b'a\0b', b'y' * 300 + b'.pth']
)
def test_a_note_that_names_no_file(content, work, capsys):
    (work / 'last_checkpoint').write_bytes(content)
    assert resumed(work).load_from == f'{work}/epoch_3.pth'
    assert 'last_checkpoint names no file' in capsys.readouterr().err


@pytest.mark.parametrize(('there', 'here'), [(1, 2), (2, 1), (0, 1)])
def test_another_number_of_schedules(there, here, tmp_path):
    own = [dict(type='ConstantLR')] * here
    cfg = Config(dict(load_from='x.pth', param_scheduler=own))
    content = dict(meta=dict(epoch=1, iter=2), message_hub={})

    def check(states):
        check_resumable(cfg, dict(content, param_schedulers=states))

    with pytest.raises(UserError, match=f'state of {there} param_schedulers'):
        check([{}] * there)
    check([{}] * here)
    check(dict(one=[{}]))  # of several optimisers
    if here == 1:
        cfg.param_scheduler = own[0]
        check([{}])


@pytest.mark.parametrize('numbers', [(1, 2), (3,), (2, 1)])
def test_other_groups_of_parameters(numbers):
    def optimizer(numbers):
        groups = [dict(params=[torch.ones(1)] * n) for n in numbers]
        for group in groups:
            group['params'] = [one.clone() for one in group['params']]
        return torch.optim.SGD(groups, lr=0.1)

    state = optimizer((2, 2)).state_dict()
    check_groups(optimizer((2, 2)), 'x.pth', state)
    check_groups(optimizer((2, 2)), 'x.pth', None)
    with pytest.raises(UserError, match='has 4 parameters in groups of 2, 2'):
        check_groups(optimizer(numbers), 'x.pth', state)
