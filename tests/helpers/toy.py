# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The least that mmengine can train, for tests of hooks and of resuming."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

SAMPLES, BATCH = 8, 2


class ToyModel(BaseModel):
    """One layer, with dropout; `trouble(iteration)` may spoil the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.5)
        self.iteration = 0
        self.trouble: Any = None

    def forward(self, x: torch.Tensor, mode: str = 'tensor') -> Any:
        if mode == 'predict':
            return [x.mean()]
        loss = self.linear(self.dropout(x)).square().mean()
        if self.trouble is not None:
            loss = self.trouble(self.iteration, loss)
        self.iteration += 1
        return dict(loss_a=loss, loss_b=0.5 * loss.detach())


def augment(sample: dict) -> dict:
    noise = np.random.rand(3)
    return dict(x=torch.tensor(sample['value'] + noise).float())


class ToyDataset(BaseDataset):
    """Numbers with noise from NumPy's generator, as augmentation draws it."""

    METAINFO = dict(classes=('a',))

    def load_data_list(self) -> list[dict]:
        return [
            dict(img_path=f'{i}.jpg', value=float(i)) for i in range(SAMPLES)
        ]


class ToyMetric(BaseMetric):
    """As many points as it was asked: every epoch is the best so far."""

    asked = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict:
        self.asked += 1
        return dict(acc=self.asked)


def loader(pipeline: list, shuffle: bool, infinite: bool = False, **kwargs):
    sampler = 'InfiniteSampler' if infinite else 'DefaultSampler'
    return dict(
        batch_size=BATCH,
        num_workers=0,
        dataset=ToyDataset(pipeline=pipeline, lazy_init=False),
        sampler=dict(type=sampler, shuffle=shuffle),
        collate_fn=dict(type='default_collate'),
    ) | dict(kwargs)


def runner(
    folder: Path,
    hooks: dict,
    epochs: int | None = None,
    iterations: int | None = None,
    pipeline: Any = (augment,),
    workers: int = 0,
    validate: bool = False,
    **kwargs: Any,
) -> Runner:
    """A runner with `hooks` as default hooks, which may be mmengine's."""
    by_epoch = epochs is not None
    torch.manual_seed(0)  # for the weights
    settings: dict[str, Any] = dict(
        model=ToyModel(),
        work_dir=str(folder),
        train_dataloader=loader(
            list(pipeline), True, not by_epoch, num_workers=workers
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs)
        if by_epoch
        else dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.1),
            clip_grad=dict(max_norm=1),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=9)
        ],
        default_hooks=hooks,
        randomness=dict(seed=0),
        experiment_name=f'{folder.parent.name}_{folder.name}_{id(hooks)}',
        log_level='ERROR',
    )
    if validate:
        settings.update(
            val_dataloader=loader(list(pipeline), False),
            val_cfg=dict(),
            val_evaluator=Evaluator(ToyMetric()),
        )
    return Runner(**(settings | kwargs))
