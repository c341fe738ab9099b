# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The weights that the backbone of a training starts from."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config

from ..checkpoints.loading import load_checkpoint_file
from ..checkpoints.starting import select
from ..models import DAT
from ..utils.errors import UserError, speaks
from .identify import Identity, identify

RANDOM = 'none'  # value of --pretrained for random weights
_DENSE = ('mmdet', 'mmseg')
# Data sets on which random initial weights are most likely a mistake.
_PUBLISHED_DATA = ('CocoDataset', 'ADE20KDataset')


def backbones(place: str, node: Any) -> Iterator[tuple[str, dict]]:
    """All settings of a DAT inside a model, with their place."""
    if isinstance(node, dict):
        if node.get('type') in ('DAT', 'mmdat.DAT', DAT):
            yield place, node
        for name, child in node.items():
            yield from backbones(f'{place}.{name}', child)
    elif isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from backbones(f'{place}.{i}', child)


def set_pretrained(cfg: Config, pretrained: str | None) -> None:
    """Starts the backbone from a file, ``--pretrained FILE``.

    Other keys of ``init_cfg`` from the config or ``--cfg-options``, such as
    ``prefix`` and ``strict``, are kept. Call this before
    ``mmdat.engine.resuming.set_resume``.

    Args:
        cfg: The config.
        pretrained: A checkpoint; ``'none'`` for random weights; None leaves
            the config as it is.

    Raises:
        UserError: There is no DAT in the model, or ``load_from`` would
            override the file.
    """
    if pretrained is None:
        return
    found = list(backbones('model', cfg.get('model')))
    if not found:
        raise UserError(
            f'--pretrained is for the backbone DAT, and {cfg.filename} builds '
            f'none; set the init_cfg of its backbone instead.'
        )
    if cfg.get('load_from') and pretrained != RANDOM:
        raise UserError(
            f'--pretrained {pretrained} would be overridden by load_from='
            f'{cfg.load_from} of {cfg.filename}; use --cfg-options '
            f'load_from={pretrained} to start backbone and head from it, or '
            f'load_from=None to start the backbone alone.'
        )
    for _, settings in found:
        kept = settings.get('init_cfg')
        kept = dict(kept) if isinstance(kept, dict) else {}
        settings['init_cfg'] = (
            {}
            if pretrained == RANDOM
            else dict(kept, type='Pretrained', checkpoint=pretrained)
        )


def warn_of_random_start(cfg: Config, pretrained: str | None) -> None:
    """Warns that the backbone of a detector or segmentor starts random.

    It warns for COCO and ADE20K, and for any data if the backbone is a
    published one, whose weights exist. It does not warn with ``--pretrained
    none``, when resuming, or with ``load_from``.
    """
    if pretrained == RANDOM or cfg.get('load_from') or cfg.get('resume'):
        return
    if cfg.get('default_scope') not in _DENSE:
        return
    for place, settings in backbones('model', cfg.get('model')):
        init_cfg = settings.get('init_cfg') or {}
        parts = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
        named = isinstance(settings.get('arch', 'dat_t'), str)
        if any(part.get('checkpoint') for part in parts) or not (
            named or _is_published(cfg)
        ):
            continue
        _warn(
            f'{place} starts from random weights, but the reported results '
            f'start from ImageNet weights; add --pretrained FILE, or '
            f'--pretrained none if you mean it.'
        )


def match_tables(cfg: Config) -> None:
    """Builds a DAT++ with position-bias tables of the size that a file has.

    A backbone takes them as they are when the file is loaded, see
    ``mmdat.checkpoints.hooks``. In a training in several processes that is
    too late: their gradients have been given room by then.
    """
    for _, settings in backbones('model', cfg.get('model')):
        init_cfg = settings.get('init_cfg')
        start = init_cfg.get('checkpoint') if init_cfg else None
        filename = cfg.get('load_from') or start
        if not filename or '://' in filename:
            continue
        arguments = {
            k: v for k, v in settings.items() if k not in ('type', 'init_cfg')
        }
        own = _identity(arguments)
        prefix = None if cfg.get('load_from') else init_cfg.get('prefix')
        try:
            content = load_checkpoint_file(filename, 'meta')
            found = identify(select(filename, content, prefix))
        except UserError:
            continue  # the preflight says what is wrong
        if own is None or None in (found.img_size, own.img_size):
            continue
        if found.family == own.family != 'DAT':
            settings['img_size'] = found.img_size


def _identity(arguments: dict[str, Any]) -> Identity | None:
    try:
        with torch.device('meta'):
            return identify(DAT(**arguments).state_dict())
    except (TypeError, ValueError):
        return None  # the preflight says what is wrong


def _is_published(cfg: Config) -> bool:
    """Whether it trains on COCO or ADE20K, with their own classes."""
    waiting = [(cfg.get('train_dataloader') or {}).get('dataset')]
    while waiting:
        dataset = waiting.pop()
        if not isinstance(dataset, dict):
            continue
        kind = str(dataset.get('type')).split('.')[-1]
        if kind in _PUBLISHED_DATA and not dataset.get('metainfo'):
            return True
        waiting.append(dataset.get('dataset'))
        waiting.extend(dataset.get('datasets') or [])
    return False


def _warn(sentence: str) -> None:
    """Says it once, whatever the number of processes."""
    if speaks():
        print(f'warning: {sentence}', file=sys.stderr, flush=True)
