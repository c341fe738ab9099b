# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The same seed gives the same weights, bit by bit, in every task.

Two processes, and a classifier through the command line, are compared in
test_tools/test_faults.
"""

import family
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner

from mmdat.datasets.digits import DigitsOptions, make_digits
from mmdat.engine.configuration import set_loader_defaults
from mmdat.engine.data_files import set_data_root

TASKS = [
    ('mask_rcnn_dat_digits', 'coco'),
    ('upernet_dat_digits', 'ade'),
]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    options = DigitsOptions(train=4, val=1, size=96, crops=1, crop_size=48)
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', options)


@pytest.fixture(autouse=True)
def setting(monkeypatch):
    """As it was before, and without the config in the log."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))
    yield
    torch.use_deterministic_algorithms(False)


def train(name, data, folder, seed):
    """Two iterations with random crops, colours and stochastic depth."""
    cfg = family.load(name)
    set_data_root(cfg, f'{data}/')
    set_loader_defaults(cfg)
    cfg.train_dataloader.update(batch_size=2, num_workers=0)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint = None
    cfg.model.backbone.drop_path_rate = 0.5
    cfg.randomness = dict(seed=seed, deterministic=True)
    cfg.work_dir = str(folder)
    cfg.experiment_name = f'{folder.parent.name}_{folder.name}'
    runner = Runner.from_cfg(cfg)
    assert torch.are_deterministic_algorithms_enabled()
    runner.model = revert_sync_batchnorm(runner.model)
    runner.train()
    return runner.model.state_dict()


@pytest.mark.parametrize(('name', 'folder'), TASKS)
def test_the_seed_decides_everything(name, folder, digits, tmp_path):
    one, same = (
        train(name, digits / folder, tmp_path / str(i), seed=1) for i in (1, 2)
    )
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    if name == TASKS[0][0]:
        other = train(name, digits / folder, tmp_path / 'other', seed=2)
        differ = [key for key in one if not one[key].equal(other[key])]
        assert len(differ) > len(one) // 2
