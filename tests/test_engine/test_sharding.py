# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Models in shards over two processes train as in one, and load in one."""

import os
import shutil
import socket

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner
from torch import nn
from versions import needs_torch

from mmdat.models import DAT

STRATEGIES = dict(
    one=dict(type='SingleDeviceStrategy'),
    fsdp1=dict(type='FSDP1Strategy'),
    fsdp2=dict(type='FSDP2Strategy'),
)


class Classifier(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        arch = dict(
            embed_dims=[8, 16, 16, 32],
            depths=[1, 1, 2, 2],
            num_heads=[1, 2, 2, 4],
            img_size=64,
        )
        self.backbone = DAT(arch, out_indices=(3,), with_cp=[True, False] * 2)
        self.head = nn.Linear(32, 2)

    def forward(self, images, labels=None, mode='loss'):
        if isinstance(images, list):
            images = torch.stack(images)
        scores = self.head(self.backbone(images)[0].mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(scores, labels))


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        image = torch.randn(3, 64, 64, generator=generator)
        return dict(images=image, labels=i % 2)


def train(kind, folder, resume=False):
    """Four iterations of four images, a checkpoint after each second."""
    import mmdat.engine.sharding  # noqa: F401 registers

    runner = FlexibleRunner(
        model=Classifier(),
        work_dir=str(folder),
        experiment_name=f'{kind}{resume}',
        strategy=dict(STRATEGIES[kind]),
        train_dataloader=dict(
            batch_size=4 if kind == 'one' else 2,
            dataset=Images(),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
            clip_grad=dict(max_norm=1.0),
        ),
        train_cfg=dict(by_epoch=False, max_iters=4),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)
        ),
        resume=resume,
        launcher='none' if kind == 'one' else 'pytorch',
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    runner.train()


def work(rank, port, kind, folder, resume):
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        WORLD_SIZE='2',
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )
    torch.distributed.init_process_group('gloo')
    train(kind, folder, resume)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train_in_two(kind, folder, resume=False):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, kind, str(folder), resume), nprocs=2)


def weights(folder, iteration=4):
    path = folder / f'iter_{iteration}.pth'
    return torch.load(path, weights_only=False)['state_dict']


def half_way(source, folder):
    """A work dir as of an interrupted training."""
    folder.mkdir()
    shutil.copy(source / 'iter_2.pth', folder)
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_2.pth'))
    return folder


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp('alone')
    train('one', folder)
    return folder


@needs_torch('2.6')
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='for the CPU')
@pytest.mark.parametrize('kind', ['fsdp2', 'fsdp1'])
def test_shards_and_one_process_are_alike(kind, alone, tmp_path):
    train_in_two(kind, tmp_path / 'two')
    wanted, found = weights(alone), weights(tmp_path / 'two')
    close = dict(atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found, wanted, **close)
    Classifier().load_state_dict(found)
    # One process goes on from the checkpoint of two, moments included.
    back = half_way(tmp_path / 'two', tmp_path / 'one')
    train('one', back, resume=True)
    torch.testing.assert_close(weights(back), wanted, **close)
    # And two from that of one.
    on = half_way(alone, tmp_path / 'on')
    train_in_two(kind, on, resume=True)
    torch.testing.assert_close(weights(on), wanted, **close)
