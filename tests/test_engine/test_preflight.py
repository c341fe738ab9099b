# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Which weights must be there before what run."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmdat import DAT
from mmdat.engine.preflight import check_weights
from mmdat.utils.errors import UserError

ARCH = dict(
    embed_dims=[16, 32, 32, 64], depths=[1] * 4, num_heads=[1, 2, 2, 4]
)


class Model(nn.Module):
    def __init__(self, classes, **settings):
        super().__init__()
        self.backbone = DAT(ARCH, out_indices=(3,), **settings)
        self.head = nn.Module()
        self.head.fc = nn.Linear(64, classes)


@pytest.fixture
def runner(tmp_path):
    """What mmengine's Runner is before it runs; its loops are in its config,
    whichever of them is going to run."""
    torch.save(
        dict(state_dict=Model(10).state_dict(), meta={}), tmp_path / 'x.pth'
    )
    warnings = []
    return SimpleNamespace(
        _load_from=str(tmp_path / 'x.pth'),
        _resume=False,
        _train_loop=dict(type='EpochBasedTrainLoop'),
        model=Model(10),
        logger=SimpleNamespace(warning=warnings.append),
        warnings=warnings,
    )


@pytest.mark.parametrize('training', [False, True])
def test_what_fits_is_not_spoken_of(runner, training):
    check_weights(runner, training)
    assert not runner.warnings


def test_a_test_needs_the_head(runner):
    runner.model = Model(11)
    with pytest.raises(UserError, match='2 entries are of another shape'):
        check_weights(runner)


def test_a_resumed_training_needs_the_head(runner):
    runner.model, runner._resume = Model(11), True
    with pytest.raises(UserError, match='2 entries are of another shape'):
        check_weights(runner, training=True)


def test_a_resumed_training_needs_the_groups(runner):
    content = torch.load(runner._load_from)
    content['optimizer'] = dict(param_groups=[dict(params=[0, 1])])
    torch.save(content, runner._load_from)
    runner._resume, runner.optim_wrapper = True, dict(type='OptimWrapper')
    groups = [dict(params=list(runner.model.parameters()))]
    runner.build_optim_wrapper = lambda _: SimpleNamespace(param_groups=groups)
    with pytest.raises(UserError, match='2 parameters in groups of 2 and'):
        check_weights(runner, training=True)
    groups[0]['params'] = groups[0]['params'][:2]
    check_weights(runner, training=True)
    assert runner.optim_wrapper.param_groups is groups


def test_a_training_may_start_with_another_head(runner):
    runner.model = Model(11)
    check_weights(runner, training=True)


def test_a_training_needs_the_backbone(runner):
    runner.model = Model(10, mlp_ratio=3)
    with pytest.raises(UserError, match='of another shape'):
        check_weights(runner, training=True)


def test_what_is_left_over_is_named(runner):
    content = torch.load(runner._load_from)
    content['state_dict']['head.surprise'] = torch.ones(1)
    torch.save(content, runner._load_from)
    check_weights(runner)
    (warning,) = runner.warnings
    assert '1 entry is unexpected (head.surprise)' in warning


def test_another_resolution_is_named(runner):
    runner.model = Model(10, img_size=384)
    check_weights(runner)
    (warning,) = runner.warnings
    assert 'holds at 224 only' in warning


def test_without_a_checkpoint_nothing_is_checked(runner):
    runner._load_from = None
    check_weights(runner)
