# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From any checkpoint of a DAT to a lean one in the layout of OpenMMLab."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..checkpoints import released
from ..checkpoints.loading import load_checkpoint_file
from ..checkpoints.publishing import publish
from ..utils.errors import UserError
from ..version import __version__
from .identify import Identity, identify

_BACKBONE = 'backbone.'
# What mmengine and the inferencers read of a checkpoint's meta.
_KEPT = ('epoch', 'iter', 'cfg', 'dataset_meta', 'experiment_name', 'seed')


@dataclass(frozen=True)
class Conversion:
    """What was converted, and to what.

    Attributes:
        path: The file that was written.
        identity: What it is.
        epochs: Epochs it was trained for, None if the source does not say.
        iterations: Iterations it was trained for, likewise.
        left_out: What the source held besides weights, and how many index
            tables.
    """

    path: Path
    identity: Identity
    epochs: int | None
    iterations: int | None
    left_out: tuple[str, ...]


def convert(
    source: str | os.PathLike, target: str | os.PathLike
) -> Conversion:
    """Writes a weights-only checkpoint with our names.

    Args:
        source: A file the authors released or a training left.
        target: ``.pth`` or ``.safetensors`` file; the first eight digits of
            its SHA-256 are added to the name.

    Raises:
        UserError: The source is no DAT, or the target cannot be written.
    """
    checkpoint = load_checkpoint_file(source, 'cpu')
    identity = identify(checkpoint)
    if identity.family is None:
        raise UserError(
            f'Only checkpoints of DAT and DAT++ are converted; {source} holds '
            f'{identity}.'
        )
    entries = standard_entries(checkpoint)
    meta = standard_meta(checkpoint)
    meta['mmdat'] = dict(
        version=__version__,
        source=Path(source).name,
        model=str(identity),
        arch=identity.arch,
        img_size=identity.img_size,
        task=identity.task,
        method=identity.method,
        parameters=identity.parameters,
    )
    return Conversion(
        publish(entries, meta, Path(target).expanduser()),
        identity,
        meta.get('epoch'),
        meta.get('iter'),
        _left_out(checkpoint),
    )


def standard_entries(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights under the names of an OpenMMLab model.

    The parameters of a released backbone get mmdat's names with the prefix
    ``backbone.``, and its classifier becomes mmpretrain's ``head.fc``. Heads
    of detectors and segmentors keep their names. Tensors do not share memory.
    """
    entries = released.entries_of(checkpoint)
    if not any(name.startswith(_BACKBONE) for name in entries):
        entries = {
            f'head.fc.{name.removeprefix("cls_head.")}'
            if name.startswith('cls_head.')
            else _BACKBONE + name: value
            for name, value in entries.items()
        }
    inside = {
        name.removeprefix(_BACKBONE): value
        for name, value in entries.items()
        if name.startswith(_BACKBONE)
    }
    if released.is_released(inside):
        inside = released.translate(inside)
    standard = {_BACKBONE + name: value for name, value in inside.items()}
    standard.update(
        (name, value)
        for name, value in entries.items()
        if not name.startswith(_BACKBONE)
    )
    return {
        name: value.detach().clone().contiguous()
        for name, value in standard.items()
        if isinstance(value, Tensor)
    }


def standard_meta(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """How far it was trained and on which classes, as mmengine has it.

    The authors' classification files hold the epoch beside the weights, their
    detection and segmentation files have a meta of mmcv 1.
    """
    meta = checkpoint.get('meta')
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    if 'epoch' not in meta and 'epoch' in checkpoint:
        meta['epoch'] = checkpoint['epoch']
    about = {
        new: meta[old]
        for old, new in (('CLASSES', 'classes'), ('PALETTE', 'palette'))
        if meta.get(old) is not None
    }
    if about:
        meta.setdefault('dataset_meta', about)
    return {key: _plain(meta[key]) for key in _KEPT if key in meta}


def _plain(value: Any) -> Any:
    """Plain Python numbers and containers instead of NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner) for inner in value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def _left_out(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    weights = released.unwrap(checkpoint)
    parts = []
    if weights is not checkpoint:
        parts = [
            str(key)
            for key, value in checkpoint.items()
            if value is not weights and key not in ('meta', 'epoch')
        ]
    tables = sum(map(released.is_index_table, weights))
    if tables:
        parts.append(f'{tables} index tables')
    return tuple(parts)
