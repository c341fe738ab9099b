# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From a config file and a command line to the config that runs."""

from pathlib import Path
from traceback import walk_tb
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device

from ..utils.config_files import config_folder, config_path
from ..utils.errors import UserError, UserFileNotFoundError
from ..utils.setup_env import setup_config_packages

# Default hooks of mmengine; a config removes a hook with None.
_OF_MMENGINE = (
    'runtime_info',
    'timer',
    'sampler_seed',
    'logger',
    'param_scheduler',
    'checkpoint',
)


def load_config(
    filename: str, options: dict[str, Any] | None = None
) -> Config:
    """Reads a config file and applies ``--cfg-options``.

    Returns:
        The config, with a ``default_scope``, and without hooks that are None.

    Raises:
        UserError: The file is missing or is no config, or an option does not
            fit it.
    """
    setup_config_packages()
    if not _is_file(filename):
        raise UserFileNotFoundError(
            f'There is no config {filename} (looked for '
            f'{Path(filename).absolute()}); {_elsewhere(filename)}.'
        )
    try:
        cfg = Config.fromfile(filename)
    except UserError:
        raise
    except Exception as error:  # a config is a program
        raise UserError(
            f'{filename} cannot be read as a config: {_reason(error)}.'
        ) from error
    if options:
        try:
            cfg.merge_from_dict(options)
        except (TypeError, KeyError, AssertionError) as error:
            raise UserError(
                f'--cfg-options {options} does not fit {filename}: {error}'
            ) from error
    if cfg.get('default_scope') is None:
        cfg.default_scope = _scope_of_types(cfg)
    _take_off_hooks(cfg)
    return cfg


def _reason(error: Exception) -> str:
    """Returns what is wrong with a config, without a traceback."""
    text = str(error.args[0] if error.args else '').strip().rstrip('.')
    if isinstance(error, RecursionError):
        return 'it inherits from itself, or has too many lists inside lists'
    if isinstance(error, OSError | SyntaxError | UnicodeDecodeError):
        return str(error).strip() or type(error).__name__
    lines = [
        line
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_code.co_filename in ('<unknown>', '<string>')
    ]
    where = f', line {lines[-1]}' if lines else ''
    return f'{type(error).__name__}{where}: {text:.500}'


def _is_file(filename: str) -> bool:
    try:
        return Path(filename).is_file()
    except (OSError, ValueError):  # a name too long, or with a null
        return False


def _elsewhere(filename: str) -> str:
    """Where a config that was not found may be instead."""
    try:
        found = config_path(filename)
    except UserError:
        folder = config_folder()
        where = 'configs/' if folder is None else f'{folder}/'
        return f'the configs that come with mmdat are in {where}'
    here = Path.cwd()
    path = Path(found)
    path = path.relative_to(here) if path.is_relative_to(here) else path
    return f'a similar name is {path}'


def _scope_of_types(cfg: Config) -> str:
    """The package that a config without a default scope is for."""
    kind = (cfg.get('model') or {}).get('type')
    for one in getattr(kind, '__mro__', ()):
        package = one.__module__.partition('.')[0]
        if package.startswith('mm') and package not in (
            'mmengine',
            'mmcv',
            'mmdat',
        ):
            return package
    if isinstance(kind, str) and '.' in kind:
        return kind.partition('.')[0]
    return 'mmengine'


def _take_off_hooks(cfg: Config) -> None:
    """Leaves out hooks that are None, as mmengine does for its own alone."""
    hooks = cfg.get('default_hooks')
    for name in list(hooks or ()):
        if hooks[name] is None and name not in _OF_MMENGINE:
            del hooks[name]


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
            mmengine needs, or the config has nothing to train with.
    """
    if get_device() == 'cpu':
        raise UserError(
            'Mixed precision needs an accelerator and this machine offers '
            'only the CPU; leave out --amp.'
        )
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        raise UserError(
            f'--amp changes optim_wrapper and {cfg.filename} has none; '
            f'inherit a schedule.'
        )
    kind = wrapper.get('type')
    if getattr(kind, '__name__', kind) != 'AmpOptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scales the learning rate to the total batch size of this run.

    Raises:
        UserError: The config does not say for which batch size its rate is.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
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
