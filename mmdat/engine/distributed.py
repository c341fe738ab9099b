# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Several processes without a GPU: gloo, and DDP on the CPU.

On GPUs mmengine does all of this itself.
"""

import os
import subprocess
from typing import Any

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """DDP on the CPU, where synchronised batch norm does not exist.

    Args:
        module: The model; its SyncBN layers become plain batch norms, and
            their statistics follow the first process.
        device_ids: Ignored, since the CPU has no number.
        **kwargs: As in :class:`torch.nn.parallel.DistributedDataParallel`.
    """

    def __init__(
        self, module: nn.Module, device_ids: Any = None, **kwargs: Any
    ) -> None:
        kwargs['broadcast_buffers'] = True
        super().__init__(
            module=revert_sync_batchnorm(module), device_ids=None, **kwargs
        )


def prepare_launch(cfg: Config, launcher: str) -> None:
    """Sets the launcher, and the process group where there is no GPU."""
    cfg.launcher = launcher
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher == 'slurm':
        _environment_of_slurm()
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='CPUDistributedDataParallel',
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


def end_launch() -> None:
    """Waits for the other processes and takes the group apart.

    Without it a process that ends early pulls its connections away from
    under the ones that still work.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _environment_of_slurm() -> None:
    """Tells torch what Slurm knows of this process."""
    first = subprocess.run(
        ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[0]
    os.environ.setdefault('MASTER_PORT', '29500')
    os.environ.setdefault('MASTER_ADDR', first)
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', '0')
