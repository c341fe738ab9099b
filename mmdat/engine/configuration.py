# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From a config file and a command line to the config that runs."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device

from ..utils.errors import UserError
from ..utils.setup_env import setup_config_packages


def load_config(
    filename: str, options: dict[str, Any] | None = None
) -> Config:
    """Reads a config file and applies ``--cfg-options``.

    Raises:
        UserError: The file is missing, or an option does not fit it.
    """
    setup_config_packages()
    if not Path(filename).is_file():
        raise UserError(
            f'There is no config {filename} (looked for '
            f'{Path(filename).absolute()}); the configs that come with mmdat '
            f'are in configs/.'
        )
    cfg = Config.fromfile(filename)
    if options:
        try:
            cfg.merge_from_dict(options)
        except (TypeError, KeyError, AssertionError) as error:
            raise UserError(
                f'--cfg-options {options} does not fit {filename}: {error}'
            ) from error
    return cfg


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Chooses the folder of logs and checkpoints.

    The command line comes first, then the config, then
    ``work_dirs/<name of the config>``.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(cfg.filename).stem)


def enable_amp(cfg: Config) -> None:
    """Trains in mixed precision; keeps a dtype or loss scale of the config.

    Raises:
        UserError: This machine has no accelerator, which mixed precision in
            mmengine needs.
    """
    if get_device() == 'cpu':
        raise UserError(
            'Mixed precision needs an accelerator and this machine offers '
            'only the CPU; leave out --amp.'
        )
    wrapper = cfg.optim_wrapper
    if wrapper.get('type') != 'AmpOptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scales the learning rate to the total batch size of this run.

    Raises:
        UserError: The config does not say for which batch size its rate is.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UserError(
            '--auto-scale-lr needs auto_scale_lr.base_batch_size in the '
            f'config and {cfg.filename} has none; add '
            'auto_scale_lr=dict(base_batch_size=...).'
        )
    cfg.auto_scale_lr.enable = True


def set_loader_defaults(cfg: Config) -> None:
    """Gives mmpretrain's loaders the collate function they rely on."""
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for name in ('train', 'val', 'test'):
        loader = cfg.get(f'{name}_dataloader')
        if loader is not None:
            loader.setdefault('collate_fn', dict(type='default_collate'))
            loader.setdefault('pin_memory', get_device() != 'cpu')
