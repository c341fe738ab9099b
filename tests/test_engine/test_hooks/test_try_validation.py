# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A validation that would fail is told before the training."""

import random

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmdat.engine.hooks.try_validation import TryValidationHook
from mmdat.utils.errors import UserError


class Data(torch.utils.data.Dataset):
    metainfo = None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.full((2,), float(index)), torch.rand(())


class Model(BaseModel):
    def __init__(self, broken=False):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.dropout = torch.nn.Dropout()
        self.broken = broken

    def forward(self, images, labels, mode):
        out = self.dropout(self.layer(images))
        if mode == 'loss':
            return dict(loss=out.sum())
        if self.broken:
            raise KeyError('scale_factor')
        random.random(), np.random.rand(), torch.rand(())
        return [dict(score=one) for one in out]


class Accuracy(BaseMetric):
    """Named like a metric that is tried."""

    def __init__(self, key='score'):
        super().__init__()
        self.key, self.sizes = key, []

    def process(self, data_batch, data_samples):
        self.results += [one[self.key] for one in data_samples]

    def compute_metrics(self, results):
        self.sizes.append(len(results))
        return dict(number=len(results))


def runner_of(tmp_path, model, metric, hook=True):
    random.seed(0)
    np.random.seed(0)
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=Data(),
        collate_fn=dict(type='default_collate'),
    )
    sampler = dict(type='DefaultSampler', shuffle=False)
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(loader, sampler=sampler),
        val_dataloader=dict(loader, sampler=sampler),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        val_cfg=dict(),
        val_evaluator=Evaluator(metric),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=None),
        randomness=dict(seed=0),
        experiment_name=f'{tmp_path.name}{hook}',
    )
    if hook:
        runner.register_hook(TryValidationHook())
    return runner


@pytest.mark.parametrize(
    ('broken', 'key', 'words'),
    [(True, 'score', "KeyError: 'scale_factor'"), (False, 'x', "Error: 'x'")],
)
def test_what_cannot_validate_does_not_train(broken, key, words, tmp_path):
    model, metric = Model(broken), Accuracy(key)
    before = model.layer.weight.clone()
    with pytest.raises(UserError) as told:
        runner_of(tmp_path, model, metric).train()
    text = str(told.value)
    assert words in text and f'{__file__}, line' in text
    assert torch.equal(model.layer.weight, before)


def test_the_training_is_the_same(tmp_path):
    weights = []
    for hook in (True, False):
        torch.manual_seed(3)
        model, metric = Model(), Accuracy()
        runner_of(tmp_path, model, metric, hook).train()
        # Nothing of the trial is left when the validation begins.
        assert metric.sizes == ([1, 4] if hook else [4])
        state = [random.random(), np.random.rand(), torch.rand(()).item()]
        weights.append((model.layer.weight.tolist(), state))
    assert weights[0] == weights[1]


def test_metrics_of_others_are_left_alone(tmp_path):
    class Counting(Accuracy):
        seen = 0

        def process(self, data_batch, data_samples):
            self.seen += len(data_samples)
            super().process(data_batch, data_samples)

    metric = Counting()
    runner_of(tmp_path, Model(), metric).train()
    assert metric.seen == 4
