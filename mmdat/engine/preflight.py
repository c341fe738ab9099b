# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks before a run, so that what is wrong is said at once and clearly."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints.fitting import check_fits, resolution_note
from ..checkpoints.loading import load_checkpoint_file
from ..checkpoints.released import unwrap
from ..models import DAT
from ..utils.errors import UserError
from .data_files import check_data


def check_run(cfg: Config, splits: tuple[str, ...]) -> None:
    """Checks backbone, weights and data of a config, cheapest first.

    Args:
        cfg: The config as it will run.
        splits: Which data is needed, out of ``'train'``, ``'val'``,
            ``'test'``.

    Raises:
        UserError: With the first thing that is wrong.
    """
    for place, settings in _backbones('model', cfg.get('model')):
        _check_backbone(place, settings)
    if cfg.get('load_from') and '://' not in cfg.load_from:
        load_checkpoint_file(cfg.load_from, 'meta')
    check_data(cfg, splits)


def _backbones(place: str, node: Any) -> Iterator[tuple[str, dict]]:
    """All settings of a DAT inside a model, with their place."""
    if isinstance(node, dict):
        if node.get('type') in ('DAT', 'mmdat.DAT', DAT):
            yield place, node
        for name, child in node.items():
            yield from _backbones(f'{place}.{name}', child)
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _backbones(f'{place}.{i}', child)


def _check_backbone(place: str, settings: dict) -> None:
    """Builds the backbone without memory, and looks for its weights."""
    arguments = {k: v for k, v in settings.items() if k != 'type'}
    init_cfg = arguments.pop('init_cfg', None) or {}
    try:
        with torch.device('meta'):
            backbone = DAT(**arguments)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix('DAT.__init__() ')
        raise UserError(f'{place} cannot be built: {text}') from error
    for entry in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
        if entry.get('type') == 'Pretrained':
            _check_pretrained(f'{place}.init_cfg', entry, backbone)


def _check_pretrained(place: str, entry: dict, backbone: DAT) -> None:
    """Compares the weights that a backbone starts from with its own."""
    filename = entry.get('checkpoint')
    if not filename:
        raise UserError(f'{place} names no checkpoint; add checkpoint=FILE.')
    if '://' in filename:
        return
    try:
        checkpoint = load_checkpoint_file(filename, 'meta')
        prefix = entry.get('prefix')
        if prefix:
            start = prefix.rstrip('.') + '.'
            checkpoint = {
                name[len(start) :]: value
                for name, value in unwrap(checkpoint).items()
                if name.startswith(start)
            }
            if not checkpoint:
                raise UserError(
                    f'{filename} has no entry that starts with {start}; leave '
                    f'out prefix, as whole models and backbones alone are '
                    f'told apart by themselves.'
                )
        check_fits(filename, checkpoint, backbone)
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
    misfit = check_fits(
        filename, checkpoint, model, 'backbone.' if fresh else ''
    )
    if misfit.unexpected:
        runner.logger.warning(f'{filename} and the model: {misfit}.')
    note = resolution_note(filename, checkpoint, model)
    if note is not None:
        runner.logger.warning(note)
