# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Loads weights into a classifier or a backbone; logs what was adapted."""

import os
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoints import released
from ..checkpoints.fitting import load_and_compare
from ..checkpoints.hooks import backbone_entries
from ..checkpoints.loading import read_checkpoint
from ..checkpoints.starting import adapt_input, is_adaptable, select
from ..engine.identify import identify
from ..models import DAT
from ..utils.errors import UserError

_FIRST = 'patch_embed.conv1.weight'
# Names of the classifier in the files of the authors, mmpretrain and mmdat.
_HEADS = ('cls_head.', 'head.fc.')


def load_weights(model: nn.Module, source: str | os.PathLike) -> None:
    """Loads the weights of a file of the same architecture into a model.

    The file is a released file, a checkpoint of one of the three OpenMMLab
    packages or a state dict of one of these models. Three things may differ,
    and a message says what was adapted: the number of input channels (adapted
    as timm does), the size of position-bias tables, and the number of classes
    (the classifier starts new).

    Args:
        model: A ``mmdat.zoo.DATClassifier`` or
            ``mmdat.models.DAT``.
        source: File or URL.

    Raises:
        UserError: The file is missing, is no such file, or contains another
            architecture.
    """
    source = os.fspath(source)
    content = read_checkpoint(source, 'cpu')
    backbone = model if isinstance(model, DAT) else model.backbone
    wanted = identify(model.state_dict())
    entries = backbone_entries(select(source, content))
    if released.is_released(entries):
        entries = released.translate(entries)
    notes = _adapt_first(entries, backbone)
    misfit = load_and_compare(backbone, _of_backbone(entries))
    if misfit.is_fatal:
        raise UserError(
            f'{source} is {identify(content)}, the model is {wanted}; '
            f'{misfit}. Create the model that the file was made for, or give '
            f'another file.'
        )
    if backbone is not model:
        notes += _load_head(source, content, model)
    said = ''.join(f'; {note}' for note in notes)
    print_log(f'Started from {source}{said}.', logger='current')


def _of_backbone(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in entries.items()
        if not name.startswith(_HEADS)
    }


def _adapt_first(entries: dict[str, Any], backbone: DAT) -> list[str]:
    """Adapts the first convolution to the input channels of the model."""
    weight = entries.get(_FIRST)
    if not is_adaptable(weight):
        return []
    old, new = weight.shape[1], backbone.in_channels
    if old == new:
        return []
    entries[_FIRST] = adapt_input(weight, new)
    return [f'{_FIRST} adapted from {old} input channels to {new}']


def _load_head(
    source: str, content: Mapping[str, Any], model: nn.Module
) -> list[str]:
    """Loads the classifier if the file has one with the same classes."""
    entries, fc = released.entries_of(content), model.get_classifier()
    if not isinstance(fc, nn.Linear):
        return []
    for prefix in _HEADS:
        found = {
            name.removeprefix(prefix): value
            for name, value in entries.items()
            if name.startswith(prefix)
        }
        weight = found.get('weight')
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        if weight.shape != fc.weight.shape:
            return [
                f'its classifier has {len(weight)} classes and the '
                f"model's {len(fc.weight)}, so that starts new"
            ]
        misfit = load_and_compare(fc, found)
        if misfit.is_fatal:
            raise UserError(
                f'The classifier in {source} does not hold weights: {misfit}. '
                f'Give another file.'
            )
        return []
    return ['it holds no classifier, so that starts new']
