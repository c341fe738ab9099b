# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.Flatten(), nn.Linear(64, 2)
    )


def images(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(5, 3, 6, 6, generator=generator)


def work(rank, port, folder):
    """One of two processes: a backward pass through the wrapped model."""
    from mmengine.config import Config

    from mmdat.engine.distributed import (
        CPUDistributedDataParallel,
        prepare_launch,
    )

    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        WORLD_SIZE='2',
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )
    cfg = Config(dict(find_unused_parameters=True))
    prepare_launch(cfg, 'pytorch')
    assert cfg.launcher == 'pytorch'
    assert cfg.model_wrapper_cfg == dict(
        type='CPUDistributedDataParallel', find_unused_parameters=True
    )
    model = CPUDistributedDataParallel(make_model(), device_ids=[rank])
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    model(images(rank)).square().mean().backward()
    torch.save([p.grad for p in model.parameters()], f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='for the CPU')
def test_gradients_are_the_mean_over_processes(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    both = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    torch.testing.assert_close(*both)
    from mmengine.model import revert_sync_batchnorm

    alone = []
    for rank in (0, 1):
        model = revert_sync_batchnorm(make_model())
        model(images(rank)).square().mean().backward()
        alone.append([p.grad for p in model.parameters()])
    mean = [(a + b) / 2 for a, b in zip(*alone)]
    torch.testing.assert_close(both[0], mean)


def test_a_single_process_is_left_alone():
    from mmengine.config import Config

    from mmdat.engine.distributed import prepare_launch

    cfg = Config(dict())
    prepare_launch(cfg, 'none')
    assert cfg.get('model_wrapper_cfg') is None
    assert not torch.distributed.is_initialized()
