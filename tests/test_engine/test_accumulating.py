# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Gradients added up over small batches, and averaged weights."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from mmdat.checkpoints.loading import (  # noqa: E402
    load_checkpoint_file,
    safe_loading,
)
from mmdat.datasets.digits import DigitsOptions, make_digits  # noqa: E402
from mmdat.engine.configuration import load_config  # noqa: E402
from mmdat.engine.data_files import set_data_root  # noqa: E402

CONFIG = Path(__file__).parents[2] / 'configs' / 'classifier_dat_digits.py'


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    options = DigitsOptions(train=1, val=1, size=64, crops=1, crop_size=32)
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', options)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Formatting the config for the log takes longer than the training."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))


def settings(digits, folder, epochs, batch):
    """The digits' classifier on ten crops, each time in the same order."""
    cfg = load_config(str(CONFIG))
    set_data_root(cfg, f'{digits}/imagenet/')
    # The order of the random numbers depends on the size of a batch.
    cfg.train_dataloader.update(
        batch_size=batch, sampler=dict(type='DefaultSampler', shuffle=False)
    )
    cfg.train_dataloader.dataset.pipeline = cfg.test_pipeline
    cfg.train_cfg.update(max_epochs=epochs, val_interval=1)
    cfg.param_scheduler = []
    cfg.work_dir, cfg.experiment_name = str(folder), str(folder)
    cfg.log_level = 'WARNING'
    return cfg


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(cfg, *hooks):
    with safe_loading():
        runner = Runner.from_cfg(cfg)
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
    return runner


def test_small_batches_add_up_to_a_large_one(digits, tmp_path):
    """Both updates of a training; the second starts from the first."""
    found = {}
    for name, batch, counts in (
        ('large', 10, 1),
        ('small', 5, 2),
        ('small, without', 5, 1),
    ):
        cfg = settings(digits, tmp_path / name, 2, batch)
        cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
        cfg.default_hooks.checkpoint = None
        cfg.optim_wrapper.update(
            # Adam's first steps magnify rounding where a gradient is zero.
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
            clip_grad=dict(max_norm=1.0),
            accumulative_counts=counts,
        )
        found[name] = weights(trained(cfg).model)
    close = dict(atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found['small'], found['large'], **close)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            found['small, without'], found['large'], **close
        )


class Watch(Hook):
    """Keeps the weights of each iteration and those that are evaluated."""

    priority = 'LOWEST'

    def __init__(self):
        self.trained, self.evaluated = [], []

    def after_train_iter(self, runner, **_):
        self.trained.append(weights(runner.model))

    def before_val_epoch(self, runner):
        self.evaluated.append(weights(runner.model))


def average(steps, momentum):
    mean = steps[0]
    for step in steps[1:]:
        mean = {k: v.lerp(step[k], momentum) for k, v in mean.items()}
    return mean


def test_averaged_weights_are_evaluated_saved_and_resumed(digits, tmp_path):
    watch, momentum = Watch(), 0.3
    ema = dict(type='EMAHook', momentum=momentum)
    cfg = settings(digits, tmp_path / 'whole', 2, 5)
    cfg.custom_hooks = [ema]
    trained(cfg, watch)
    assert len(watch.trained) == 4 and len(watch.evaluated) == 2
    for epoch, evaluated in enumerate(watch.evaluated):
        mean = average(watch.trained[: 2 * (epoch + 1)], momentum)
        torch.testing.assert_close(evaluated, mean)
        saved = load_checkpoint_file(tmp_path / f'whole/epoch_{epoch + 1}.pth')
        for name, value in mean.items():
            torch.testing.assert_close(saved['state_dict'][name], value)
        last = watch.trained[2 * epoch + 1]
        for name, value in last.items():
            kept = saved['ema_state_dict'][f'module.{name}']
            torch.testing.assert_close(kept, value, rtol=0, atol=0)
        assert any((last[k] != v).any() for k, v in mean.items())

    half = settings(digits, tmp_path / 'half', 1, 5)
    half.custom_hooks = [ema]
    trained(half)
    rest = settings(digits, tmp_path / 'half', 2, 5)
    rest.custom_hooks, rest.resume = [ema], True
    trained(rest)
    found = load_checkpoint_file(tmp_path / 'half/epoch_2.pth')
    for name in ('state_dict', 'ema_state_dict'):
        torch.testing.assert_close(found[name], saved[name], rtol=0, atol=0)
