# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What every training of ours has, whatever its task."""

import family
import pytest
from mmengine.registry import HOOKS, init_default_scope

from mmdat.engine import hooks


@pytest.mark.parametrize('name', family.NAMES)
def test_faults_are_looked_after(name):
    cfg = family.load(name)
    init_default_scope(cfg.default_scope)
    built = {
        key: HOOKS.build(hook)
        for key, hook in cfg.default_hooks.items()
        if key != 'visualization'  # wants the visualiser of a runner
    }
    assert type(built['checkpoint']) is hooks.AtomicCheckpointHook
    assert built['checkpoint'].max_keep_ckpts > 0
    wanted = dict(mmseg=['mIoU'], mmpretrain=['accuracy/top1'])
    metric = cfg.val_evaluator.get('metric')
    kinds = [metric] if isinstance(metric, str) else metric
    wanted['mmdet'] = [f'coco/{kind}_mAP' for kind in kinds or ()]
    assert built['checkpoint'].key_indicators == wanted[cfg.default_scope]
    kinds = {type(hook) for hook in built.values()}
    assert {
        hooks.CheckFiniteHook,
        hooks.IterSeedHook,
        hooks.NameDataHook,
    } < kinds


@pytest.mark.parametrize('name', family.NAMES)
def test_no_parameter_is_without_a_gradient_in_ddp(name):
    """That each gets one is shown in test_steps."""
    cfg = family.load(name)
    assert not cfg.get('find_unused_parameters', False)
    assert not cfg.get('model_wrapper_cfg')
