# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From a config file and a command line to the config that runs."""

import os
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from traceback import walk_tb
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ..utils.config_files import config_folder, config_path
from ..utils.errors import UserError, UserFileNotFoundError, warn_once
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
_SUFFIXES = ('.py', '.json', '.yaml', '.yml')
# Settings whose None mmengine takes for a dict.
_NEVER_NONE = ('env_cfg', 'randomness')
# What is read of a config besides the arguments of mmengine's Runner.
_READ = (
    'activation_checkpointing',
    'auto_scale_lr',
    'compile',
    'default_scope',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'log_level',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
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
    if Path(filename).suffix not in _SUFFIXES:
        raise UserError(
            f'A config is a file in {", ".join(_SUFFIXES)}, the first thing '
            f'on the command line; got {filename}.'
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
        notes = unread_options(cfg, options)
        try:
            cfg.merge_from_dict(options)
        except Exception as error:  # mmengine raises several kinds
            raise UserError(
                f'--cfg-options {options} does not fit {filename}: '
                f'{_reason(error)}.'
            ) from error
        for note in notes:
            warn_once(note)
    if cfg.get('default_scope') is None:
        cfg.default_scope = _scope_of_types(cfg)
    for name in _NEVER_NONE:
        if name in cfg and cfg[name] is None:
            cfg.pop(name)
    _take_off_hooks(cfg)
    return cfg


def unread_options(cfg: Config, options: dict[str, Any]) -> list[str]:
    """Returns warnings of options that probably have no effect.

    Args:
        cfg: The config, before the options.
        options: Of ``--cfg-options``, by their place.
    """
    notes = []
    for place in options:
        first = place.partition('.')[0]
        if first not in _READ and first not in signature(Runner).parameters:
            advice = 'set the place that it is used in'
            if first in ('data_root', 'dataset_root'):
                advice = 'use --data-root'
            elif first in ('max_epochs', 'max_iters'):
                advice = f'use train_cfg.{first}'
            elif first in ('lr', 'batch_size'):
                where = dict(lr='optim_wrapper.optimizer')
                advice = f'use {where.get(first, "train_dataloader")}.{first}'
            notes.append(
                f'--cfg-options {place}: MMEngine reads no setting {first!r} '
                f'of a config, and the variables of a config file are used '
                f'while it is read, so this has no effect; {advice}.'
            )
            continue
        near = _nearest_sibling(cfg, place)
        if near is not None:
            notes.append(
                f'--cfg-options {place} is new in {cfg.filename}, which has '
                f'{near}; correct the name if you mean that.'
            )
    return notes


def _nearest_sibling(cfg: Config, place: str) -> str | None:
    """Returns an existing place that a new one is a misspelling of."""
    node: Any = cfg
    *outer, last = place.split('.')
    for i, name in enumerate([*outer, last]):
        if isinstance(node, list | tuple):
            inside = name.isdigit() and int(name) < len(node)
            node = node[int(name)] if inside else None
            continue
        if not hasattr(node, 'keys'):
            return None
        if name not in node:
            close = get_close_matches(name, list(node), 1, 0.8)
            return '.'.join([*outer[:i], close[0]]) if close else None
        node = node[name]
    return None


def _reason(error: Exception) -> str:
    """Returns what is wrong with a config, without a traceback."""
    whole = error.args[0] if isinstance(error, KeyError) else error
    text = ' '.join(str(whole).split()).rstrip('.')
    if isinstance(error, ImportError) and error.__cause__ is not None:
        return (
            f'{error.__cause__}, which custom_imports names; add its folder '
            f'to PYTHONPATH'
        )
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
    # A shell leaves the ~ of --work-dir=~/x to us.
    cfg.work_dir = os.path.expanduser(cfg.work_dir)


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
