# Copyright (c) mmdat contributors. Apache-2.0 licence.
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy
from test_engine.test_distributed import join, spawn_two

from mmdat.checkpoints.loading import load_checkpoint_file, safe_loading
from mmdat.engine.hooks import IterSeedHook

PLAIN = dict(checkpoint=dict(type='CheckpointHook', interval=1))
SEEDED = dict(PLAIN, seed=dict(type='mmdat.IterSeedHook'))
EMA = dict(SEEDED, ema=dict(type='EMAHook', momentum=0.5))
BY_ITER = dict(
    SEEDED, checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)
)


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_numbers_depend_on_seed_iteration_and_moment_only():
    hook, seen = IterSeedHook(), []
    for seed in (0, 1):
        for number in (0, 1):
            runner = SimpleNamespace(seed=seed, iter=number, train_loop=None)
            hook.before_train_epoch(runner)
            loading = draw()
            hook.before_train_iter(runner, batch_idx=0)
            seen += [loading, draw()]
            # The last iteration leaves the numbers that an epoch begins with.
            hook.after_train_iter(SimpleNamespace(seed=seed, iter=number - 1))
            assert draw() == loading
            hook.before_train_iter(runner, batch_idx=0)
            assert draw() == seen[-1]
    assert len({number for numbers in seen for number in numbers}) == 24


def train(rank, port, folder):
    """One of two processes, broken after an epoch and resumed."""
    import mmengine.hooks
    from mmengine.config import Config

    from mmdat.engine.distributed import prepare_launch

    class Draw(mmengine.hooks.Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, **_):
            seen.append((runner.iter, epoch[-1]))

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            epoch.append([draw(), data_batch['x'].tolist()])

    join(rank, port)
    launch = Config()
    prepare_launch(launch, 'pytorch')
    found = {}
    for name, lengths in (('whole', [3]), ('broken', [1, 3])):
        seen, epoch = [], []
        for epochs in lengths:
            run = toy.runner(
                Path(folder) / name,
                SEEDED,
                epochs=epochs,
                cfg=launch,
                launcher='pytorch',
                randomness=dict(seed=5, diff_rank_seed=True),
                custom_hooks=[Draw()],
                resume=epochs == 3 and name == 'broken',
            )
            assert run.seed == 5 + rank
            run.train()
        found[name] = seen
    torch.save(found, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_processes_draw_different_numbers_and_repeat_them(tmp_path):
    """Also after a break, and so do the pictures that each is given."""
    spawn_two(train, tmp_path)
    one, other = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    for found in (one, other):
        assert len(found['whole']) == 6
        assert found['whole'] == found['broken']
    for (_, (drawn, data)), (_, (others, rest)) in zip(
        one['whole'], other['whole'], strict=True
    ):
        assert not set(drawn) & set(others)
        values = [int(row[0]) for row in data + rest]
        assert len(set(values)) == 4  # no picture twice
        assert not {row[0] % 1 for row in data} & {r[0] % 1 for r in rest}


def losses(checkpoint):
    history = checkpoint['message_hub']['log_scalars']['train/loss']
    return history.data[0].tolist()


def ends(tmp_path, hooks, length, half, **kwargs):
    """The last checkpoint of a training, without and with a break."""
    found = []
    with safe_loading():
        for name, resumed in (('whole', False), ('broken', True)):
            folder = tmp_path / name
            if resumed:
                toy.runner(folder, hooks, **half, **kwargs).train()
                kwargs = dict(kwargs, resume=True)
            run = toy.runner(folder, hooks, **length, **kwargs)
            run.train()
            last = (folder / 'last_checkpoint').read_text()
            found.append(load_checkpoint_file(last))
    return found


def assert_same(whole, broken):
    assert losses(whole) == losses(broken) and len(losses(whole)) > 4
    for name in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert (name in whole) == (name in broken)
        one, other = whole.get(name, {}), broken.get(name, {})
        if name == 'optimizer':
            one, other = one['state'], other['state']
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ('hooks', 'unit', 'workers'),
    [
        (SEEDED, 'epochs', 0),
        (SEEDED, 'epochs', 2),
        (EMA, 'epochs', 0),
        (BY_ITER, 'iterations', 0),
    ],
)
def test_a_resumed_training_ends_like_a_whole_one(
    hooks, unit, workers, tmp_path
):
    length, half = {unit: 5}, {unit: 3}
    whole, broken = ends(
        tmp_path, hooks, length, half, workers=workers, validate=True
    )
    assert ('ema_state_dict' in whole) == (hooks is EMA)
    assert_same(whole, broken)


def test_without_the_hook_it_does_not(tmp_path):
    """If this fails, mmengine has learned it and the hook can go."""
    whole, broken = ends(tmp_path, PLAIN, dict(epochs=3), dict(epochs=1))
    before = toy.SAMPLES // toy.BATCH
    assert losses(whole)[:before] == losses(broken)[:before]
    assert losses(whole)[before:] != losses(broken)[before:]
