# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks before a run, so that what is wrong is said at once and clearly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ..checkpoints.loading import load_checkpoint_file
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
    if cfg.get('load_from'):
        _check_file('load_from', cfg.load_from)
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
            DAT(**arguments)
    except (TypeError, ValueError) as error:
        text = str(error).removeprefix('DAT.__init__() ')
        raise UserError(f'{place} cannot be built: {text}') from error
    for entry in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
        if entry.get('type') == 'Pretrained':
            _check_file(f'{place}.init_cfg', entry.get('checkpoint'))


def _check_file(place: str, filename: str | None) -> None:
    """Reads a local checkpoint once, without its tensors if possible."""
    if not filename:
        raise UserError(f'{place} names no checkpoint; add checkpoint=FILE.')
    if '://' in filename:
        return
    try:
        load_checkpoint_file(filename, 'meta')
    except UserError as error:
        raise UserError(f'{place}: {error}') from error


def check_file_is_readable(filename: str) -> None:
    """Raises UserError unless the parent folder of an output can exist."""
    parent = Path(filename).absolute().parent
    if parent.exists() and not parent.is_dir():
        raise UserError(f'{parent} must be a folder to hold {filename}.')
