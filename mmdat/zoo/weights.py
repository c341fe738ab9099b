# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Starting a classifier or a backbone from a file, saying what was changed."""

import os
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoints import released
from ..checkpoints.fitting import load_and_compare
from ..checkpoints.hooks import backbone_entries
from ..checkpoints.loading import read_checkpoint
from ..checkpoints.starting import adapt_input, select
from ..engine.identify import identify
from ..models import DAT
from ..utils.errors import UserError

_FIRST = 'patch_embed.conv1.weight'
# Where files have the classifier: the authors', mmpretrain's and ours.
_HEADS = ('cls_head.', 'head.fc.')


def load_weights(model: nn.Module, source: str | os.PathLike) -> None:
    """Starts a model from a file of the same architecture.

    Released files, checkpoints of the three OpenMMLab packages and our own
    state dicts will do. What may differ is adapted and said: the number of
    input channels (as timm does it), the size of position-bias tables, and
    the number of classes, where the classifier starts new.

    Args:
        model: A ``mmdat.zoo.DATClassifier`` or
            ``mmdat.models.DAT``.
        source: File or URL.

    Raises:
        UserError: The file is missing, is something else, or is one of
            another architecture.
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
    """Gives the first convolution the channels of the model's images."""
    weight = entries.get(_FIRST)
    if not isinstance(weight, Tensor) or weight.ndim != 4:
        return []
    old, new = weight.shape[1], backbone.in_channels
    if old == new or not old:
        return []
    entries[_FIRST] = adapt_input(weight, new)
    return [f'{_FIRST} adapted from {old} input channels to {new}']


def _load_head(
    source: str, content: Mapping[str, Any], model: nn.Module
) -> list[str]:
    """Fills the classifier, if the file has one of as many classes."""
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
