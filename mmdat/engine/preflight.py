# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks before a run, so that problems are reported at once."""

import os
from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints.loading import load_checkpoint_file
from ..checkpoints.starting import start
from ..models import DAT
from ..models.arguments import check_init_cfg
from ..utils.errors import UserError, similar, warn_once
from ..utils.packages import check_distutils, check_package
from .data_check import check_data_and_model
from .data_check.channels import unused_maps
from .data_check.optimizers import unmatched_keys
from .data_check.parts import name_of
from .data_files import check_data
from .distributed import check_in_one, number_of_processes
from .resuming import check_groups
from .starting import backbones
from .weights import check_fits, classes_note, resolution_note

# What writes logs, and a package that it cannot do without.
_LOGS = {
    'TensorboardVisBackend': ('tensorboard', 'tensorboardX'),
    'WandbVisBackend': ('wandb',),
    'MLflowVisBackend': ('mlflow',),
    'ClearMLVisBackend': ('clearml',),
    'NeptuneVisBackend': ('neptune',),
    'DVCLiveVisBackend': ('dvclive',),
    'AimVisBackend': ('aim',),
}


def check_run(cfg: Config, splits: tuple[str, ...]) -> None:
    """Checks packages, backbone, weights and data of a config.

    Args:
        cfg: The config as it will run.
        splits: Which data is needed, out of ``'train'``, ``'val'``,
            ``'test'``.

    Raises:
        UserError: With the first thing that is wrong.
    """
    if cfg.get('model') is None:
        raise UserError(
            f'A config needs a model; {cfg.filename} has none, so inherit '
            f'one, or name a config of configs/ instead of its bases.'
        )
    check_package(cfg.get('default_scope') or 'mmengine')
    for place, settings in backbones('model', cfg.get('model')):
        _check_backbone(place, settings)
    weights = cfg.get('load_from') or ''
    # Sharded trainings of some strategies save folders.
    is_sharded = cfg.get('strategy') is not None and os.path.isdir(weights)
    if weights and '://' not in weights and not is_sharded:
        load_checkpoint_file(weights, 'meta')
    if 'train' in splits:
        _check_precision(cfg)
    _check_packages(cfg)
    check_data(cfg, splits)
    check_distutils()


def check_contents(
    cfg: Config, splits: tuple[str, ...], launcher: str = 'none'
) -> None:
    """Compares the data of a config with its model, in one process.

    Warnings are printed.

    Args:
        cfg: The config as it will run.
        splits: Which data is needed.
        launcher: What started the processes; their group is initialised.

    Raises:
        UserError: With one sentence for each thing that is wrong.
    """
    processes = number_of_processes(launcher)
    backbone = _main_backbone(cfg)
    channels = strides = None
    if backbone is not None:
        dims = [stage.dim for stage in backbone.arch.stages]
        channels = [dims[i] for i in backbone.out_indices]
        strides = [4 * 2**i for i in backbone.out_indices]

    def check() -> None:
        for sentence in check_data_and_model(
            cfg, splits, channels, processes, strides
        ):
            warn_once(sentence)
        if 'train' in splits and processes > 1 and backbone is not None:
            _check_unused(cfg, backbone, channels)

    check_in_one(check)


def _main_backbone(cfg: Config) -> DAT | None:
    """The DAT whose maps the neck of the model reads, without memory."""
    settings = (cfg.get('model') or {}).get('backbone')
    if not isinstance(settings, dict):
        return None
    if settings.get('type') not in ('DAT', 'mmdat.DAT', DAT):
        return None
    arguments = {
        k: v for k, v in settings.items() if k not in ('type', 'init_cfg')
    }
    with torch.device('meta'):
        return DAT(**arguments)


def _check_packages(cfg: Config) -> None:
    """Raises UserError for a log that needs a package which is not there."""
    visualizer = cfg.get('visualizer') or {}
    backends = visualizer.get('vis_backends') or cfg.get('vis_backends') or []
    for backend in backends if isinstance(backends, list | tuple) else []:
        name = name_of(backend.get('type')) if backend else ''
        packages = _LOGS.get(name)
        if packages and not any(find_spec(one) for one in packages):
            raise UserError(
                f'{name} in vis_backends writes its logs through the package '
                f'{packages[0]}, which is not installed; install it with pip '
                f'install {packages[0]}, or leave out that backend.'
            )


def _check_precision(cfg: Config) -> None:
    """Raises UserError for mixed precision on a CPU, asked for by a config."""
    wrapper = cfg.get('optim_wrapper') or {}
    if get_device() == 'cpu' and name_of(wrapper.get('type')) in (
        'AmpOptimWrapper',
        'ApexOptimWrapper',
    ):
        raise UserError(
            f'Mixed precision needs an accelerator and this machine offers '
            f'only the CPU; optim_wrapper.type is '
            f'{name_of(wrapper.type)!r}, so add --cfg-options '
            f'optim_wrapper.type=OptimWrapper, and leave out its dtype and '
            f'loss_scale.'
        )


def _check_unused(cfg: Config, backbone: DAT, channels: list[int]) -> None:
    """Parameters without a gradient, which DDP does not allow."""
    wrapper = cfg.get('model_wrapper_cfg') or {}
    if cfg.get('find_unused_parameters') or wrapper.get(
        'find_unused_parameters'
    ):
        return
    indices = backbone.out_indices
    unused = [
        i
        for i in unused_maps(cfg, len(indices))
        if getattr(backbone, f'norm{indices[i]}').weight.requires_grad
    ]
    last = len(backbone.stages) - 1
    if not unused and indices[-1] == last:
        return
    if not unused:
        raise UserError(
            f'In a run of several processes every parameter must get a '
            f'gradient; model.backbone.out_indices={indices} leaves out '
            f'stages after {indices[-1]}, which get none, so add '
            f'--cfg-options find_unused_parameters=True.'
        )
    kept = [i for i in range(len(indices)) if i not in unused]
    taken = tuple(indices[i] for i in kept)
    names = ', '.join(f'norm{indices[i]}' for i in unused)
    advice = f'set model.backbone.out_indices={taken}'
    neck = (cfg.get('model') or {}).get('neck')
    if isinstance(neck, dict) and neck.get('start_level'):
        advice += (
            f', model.neck.in_channels={[channels[i] for i in kept]} and '
            f'model.neck.start_level={neck.start_level - len(unused)}'
        )
    elif (cfg.get('model') or {}).get('decode_head') is not None:
        advice += ' and renumber in_index of the heads'
    raise UserError(
        f'In a run of several processes every parameter must get a gradient; '
        f'nothing reads maps {[indices[i] for i in unused]} of the backbone, '
        f'so {names} would get none: {advice}.'
    )


def _check_backbone(place: str, settings: dict) -> None:
    """Builds the backbone without memory, and looks for its weights."""
    arguments = {k: v for k, v in settings.items() if k != 'type'}
    init_cfg = arguments.pop('init_cfg', None) or {}
    try:
        with torch.device('meta'):
            backbone = DAT(**arguments)
        check_init_cfg(init_cfg)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix('DAT.__init__() ')
        raise UserError(f'{place} cannot be built: {text}') from error
    for entry in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
        if entry.get('type') == 'Pretrained':
            _check_pretrained(f'{place}.init_cfg', entry, backbone)


def _check_pretrained(place: str, entry: dict, backbone: DAT) -> None:
    """Compares the weights that a backbone starts from with its own."""
    filename = os.fspath(entry['checkpoint'])
    if '://' in filename:
        return
    try:
        checkpoint = load_checkpoint_file(filename, 'cpu')
        start(
            backbone,
            filename,
            checkpoint,
            entry.get('prefix'),
            entry.get('strict', True),
        )
    except UserError as error:
        raise UserError(f'{place}: {error}') from error


def check_weights(runner: Runner, training: bool = False) -> None:
    """Compares the checkpoint a runner will load with its model.

    A test and a resumed training need every weight; a training that starts
    from ``load_from`` needs those of the backbone, as heads may differ.

    Args:
        runner: Made, but not yet run.
        training: Whether it is going to train.

    Raises:
        UserError: Parameters would keep their initial, random values.
    """
    filename = runner._load_from
    if filename is None or '://' in filename:
        return
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    fresh = training and not runner._resume
    checkpoint = load_checkpoint_file(filename, 'cpu')
    notes = [resolution_note(filename, checkpoint, model)]
    if fresh:
        notes.append(classes_note(filename, checkpoint, model))
    try:
        misfit = check_fits(
            filename, checkpoint, model, 'backbone.' if fresh else ''
        )
    except UserError as error:
        if not (training and runner._resume):
            raise
        raise UserError(
            f'{error} A training of another model starts from its backbone '
            f'with --cfg-options load_from={filename}, without --resume.'
        ) from error
    if training and runner._resume:
        # The runner would build it later, and takes this one.
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        check_groups(
            runner.optim_wrapper, filename, checkpoint.get('optimizer')
        )
    if misfit.unexpected:
        runner.logger.warning(f'{filename} and the model: {misfit}.')
    for note in filter(None, notes):
        runner.logger.warning(note)


def warn_of_unmatched_keys(runner: Runner) -> None:
    """Warns of ``custom_keys`` that change the settings of no parameter."""
    model = runner.model
    model = model.module if is_model_wrapper(model) else model
    names = [name for name, _ in model.named_parameters()]
    for key in unmatched_keys(runner.cfg, names):
        parts = {part for name in names for part in name.split('.')}
        warn_once(
            f'optim_wrapper.paramwise_cfg.custom_keys has {key!r}, which is '
            f'part of no name of a parameter, so it has no effect'
            f'{similar(key, parts)}.'
        )
