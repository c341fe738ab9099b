# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Several processes: their start, one check for all, and their end.

On the CPU they communicate through gloo, and DDP runs there. On GPUs mmengine
does most of this.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_dist_info, init_dist
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn

from ..utils.errors import UserError, speaks

# How often a process looks whether its launcher is alive, in seconds.
_LOOK = 1.0
# Variables that mpirun sets: rank, number of processes, local rank. The
# first row is of Open MPI, the second of MPICH and its descendants.
_MPI = (
    (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
    ('PMI_RANK', 'PMI_SIZE', 'MPI_LOCALRANKID'),
)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """DDP on the CPU, where synchronised batch norm does not exist.

    Args:
        module: The model; its SyncBN layers become plain batch norms, and
            their statistics follow the first process.
        device_ids: Ignored, since the CPU has no number.
        **kwargs: As in ``torch.nn.parallel.DistributedDataParallel``.
    """

    def __init__(
        self, module: nn.Module, device_ids: Any = None, **kwargs: Any
    ) -> None:
        kwargs['broadcast_buffers'] = True
        super().__init__(
            module=revert_sync_batchnorm(module), device_ids=None, **kwargs
        )


def prepare_launch(cfg: Config, launcher: str) -> None:
    """Sets the launcher and initialises the process group.

    Raises:
        UserError: The process was not started by that launcher.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return
    _read_environment(launcher)
    if launcher == 'pytorch' and 'TORCHELASTIC_RUN_ID' in os.environ:
        _end_with(os.getppid())
    if get_device() != 'cpu':
        _prepare_gpus(cfg, launcher)
        return
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='CPUDistributedDataParallel',
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )


def _prepare_gpus(cfg: Config, launcher: str) -> None:
    """What mmengine's runner does first, before anything is checked."""
    place = os.environ.get('LOCAL_RANK', '0')
    if launcher == 'pytorch' and torch.cuda.is_available():
        number = torch.cuda.device_count()
        if place.isdigit() and int(place) >= number:
            raise UserError(
                f'Every process needs a GPU of its own; this machine offers '
                f'{number} and process {int(place) + 1} has none, so start '
                f'at most {number}, or show more in CUDA_VISIBLE_DEVICES.'
            )
    settings = cfg.get('env_cfg') or {}
    set_multi_processing(**settings.get('mp_cfg', {}), distributed=True)
    if not dist.is_initialized():
        init_dist(launcher, **settings.get('dist_cfg', {}))


def check_in_one(check: Callable[[], None]) -> None:
    """Calls a check in the first process; an error is raised in all.

    Raises:
        UserError: What the check raised.
    """
    sentence: list[str | None] = [None]
    if get_dist_info()[0] == 0:
        try:
            check()
        except UserError as error:
            sentence = [str(error)]
    broadcast_object_list(sentence)
    if sentence[0] is not None:
        raise UserError(sentence[0])


def end_launch() -> None:
    """Waits for the other processes and destroys the group.

    Without this, a process that ends early would close connections that others
    still use.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _end_with(launcher: int) -> None:
    """Ends this process when its launcher is gone.

    Torchrun ends its processes when it ends itself, unless it is killed.
    """

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_LOOK)
        if speaks():
            print(
                'torchrun has ended, so its processes end.',
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name='launcher').start()


def number_of_processes(launcher: str) -> int:
    """Processes of the run, as the launcher says."""
    if launcher == 'none':
        return 1
    names = ('WORLD_SIZE', 'SLURM_NTASKS', *(size for _, size, _ in _MPI))
    for name in names:
        if os.environ.get(name, '').isdigit():
            return max(int(os.environ[name]), 1)
    return 1


def _read_environment(launcher: str) -> None:
    """Sets torch's environment variables from those of the launcher."""
    env = os.environ
    if launcher == 'pytorch':
        wanted = ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
        missing = [name for name in wanted if name not in env]
        if missing:
            raise UserError(
                '--launcher pytorch is for processes that torchrun starts, '
                f'and {missing[0]} is not set; run tools/dist_train.sh or '
                'tools/dist_test.sh, or leave out --launcher.'
            )
    elif launcher == 'slurm':
        _environment_of_slurm(env)
    else:
        _environment_of_mpi(env)


def _environment_of_slurm(env: Any) -> None:
    wanted = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST')
    missing = [name for name in wanted if name not in env]
    if missing:
        raise UserError(
            '--launcher slurm is for processes that srun starts, and '
            f'{missing[0]} is not set; run tools/slurm_train.sh or '
            'tools/slurm_test.sh, or leave out --launcher.'
        )
    env.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in env:
        env['MASTER_ADDR'] = _first_host(env)
    env['WORLD_SIZE'] = env['SLURM_NTASKS']
    env['RANK'] = env['SLURM_PROCID']
    env['LOCAL_RANK'] = env.get('SLURM_LOCALID', '0')


def _first_host(env: Mapping[str, str]) -> str:
    command = ['scontrol', 'show', 'hostname', env['SLURM_NODELIST']]
    try:
        listed = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.split()
        return listed[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f'Processes of Slurm find each other by `{" ".join(command)}`, '
            f'which failed ({error}); set MASTER_ADDR to the first machine.'
        ) from error


def _environment_of_mpi(env: Any) -> None:
    names = next((n for n in _MPI if n[0] in env and n[1] in env), None)
    if names is None:
        raise UserError(
            '--launcher mpi is for processes that mpirun starts, and '
            f'{_MPI[0][0]} is not set; run mpirun -n PROCESSES python '
            'tools/train.py ..., or leave out --launcher.'
        )
    number, total, here = names
    env['RANK'], env['WORLD_SIZE'] = env[number], env[total]
    env['LOCAL_RANK'] = env.get(here, '0')
    env.setdefault('OMPI_COMM_WORLD_LOCAL_RANK', env['LOCAL_RANK'])
    env.setdefault('OMPI_COMM_WORLD_RANK', env['RANK'])
    env.setdefault('OMPI_COMM_WORLD_SIZE', env['WORLD_SIZE'])
    env.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' in env:
        return
    together = env.get('OMPI_COMM_WORLD_LOCAL_SIZE', env[total])
    if together != env[total]:
        raise UserError(
            'Processes of mpirun on several machines need MASTER_ADDR, the '
            'address of the first; add -x MASTER_ADDR=... to mpirun.'
        )
    env['MASTER_ADDR'] = '127.0.0.1'
