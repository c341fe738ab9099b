# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from torch import nn

from mmdat.engine import distributed
from mmdat.utils.errors import UserError


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.Flatten(), nn.Linear(64, 2)
    )


def images(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(5, 3, 6, 6, generator=generator)


def join(rank, port):
    os.environ.update(
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
        WORLD_SIZE='2',
        RANK=str(rank),
        LOCAL_RANK=str(rank),
    )


def spawn_two(work, folder):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, str(folder)), nprocs=2)


def work(rank, port, folder):
    """One of two processes: a backward pass through the wrapped model."""
    from mmengine.config import Config

    from mmdat.engine.distributed import (
        CPUDistributedDataParallel,
        prepare_launch,
    )

    join(rank, port)
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
    spawn_two(work, tmp_path)
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


def make_backbone(family, with_cp):
    """All kinds of attention the family has, and no stochastic depth."""
    from mmdat.models import DAT

    torch.manual_seed(0)
    arch = dict(
        family=family,
        embed_dims=[8, 16, 16, 32],
        depths=[1, 1, 2, 2],
        num_heads=[1, 2, 2, 4],
        img_size=64,
    )
    return DAT(arch, with_cp=with_cp).double()


def pictures(rank):
    generator = torch.Generator().manual_seed(rank)
    shape = (2, 3, 64, 96)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def backward(model, images, steps=2):
    """Two steps of descent; the gradients of the second."""
    parameters = list(model.parameters())
    for step in range(steps):
        model.zero_grad()
        # A mean over samples, with weights so that no sum is trivial.
        sum(
            (level * torch.linspace(-1, 1, level[0].numel()).view_as(level[0]))
            .square()
            .mean()
            for level in model(images)
        ).backward()
        if step < steps - 1:
            with torch.no_grad():
                for p in parameters:
                    p.sub_(p.grad, alpha=0.1)
    return [p.grad.clone() for p in parameters]


CASES = [(f, cp) for f in ('dat', 'dat_pp') for cp in (False, True)]


def train_backbones(rank, port, folder):
    """One of two processes: DDP as the commands set it up."""
    from mmengine.config import Config
    from mmengine.registry import MODEL_WRAPPERS

    from mmdat.engine.distributed import prepare_launch

    torch.set_num_threads(1)
    join(rank, port)
    cfg = Config(dict())
    prepare_launch(cfg, 'pytorch')
    gradients = {}
    for case in CASES:
        model = MODEL_WRAPPERS.build(
            dict(cfg.model_wrapper_cfg, module=make_backbone(*case))
        )
        assert not model.find_unused_parameters
        gradients[case] = backward(model.train(), pictures(rank))
    torch.save(gradients, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason='for the CPU')
def test_two_processes_equal_one_on_the_joint_batch(tmp_path):
    """Also when blocks are computed again in the backward pass."""
    spawn_two(train_backbones, tmp_path)
    both = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    torch.testing.assert_close(*both, rtol=0, atol=0)
    joint = torch.cat([pictures(0), pictures(1)])
    for family, with_cp in CASES:
        model = make_backbone(family, with_cp).train()
        assert not any(
            isinstance(m, nn.modules.batchnorm._NormBase)
            for m in model.modules()
        )
        alone = backward(model, joint)
        assert all(gradient.any() for gradient in alone)
        torch.testing.assert_close(
            both[0][family, with_cp], alone, rtol=1e-6, atol=1e-9
        )


def test_a_single_process_is_left_alone():
    from mmengine.config import Config

    from mmdat.engine.distributed import prepare_launch

    cfg = Config(dict())
    prepare_launch(cfg, 'none')
    assert cfg.get('model_wrapper_cfg') is None
    assert not torch.distributed.is_initialized()


def test_processes_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(UserError, match='process 3 has none, so start at'):
        distributed._prepare_gpus(Config(dict()), 'pytorch')
