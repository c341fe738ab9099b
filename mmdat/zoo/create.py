# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Creates a model from its name."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..models import DAT
from ..models.arch import NUM_STAGES, require
from ..utils.errors import SettingError
from .classifier import DATClassifier, stage_numbers
from .names import arch_of
from .settings import default_cfg
from .weights import load_weights


def create_model(
    name: str | Mapping[str, Any],
    pretrained: str | os.PathLike | bool | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | Sequence[int] | None = None,
    global_pool: str = 'avg',
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    drop_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
    **kwargs: Any,
) -> nn.Module:
    """Creates a classifier, or a backbone for feature maps.

    Args:
        name: A name of ``mmdat.list_models`` or of the arch zoo, or an arch
            dict, see ``mmdat.models.DAT``.
        pretrained: A file of weights, see
            ``mmdat.zoo.weights.load_weights``.
        num_classes: Number of classes; 0 for pooled features.
        in_chans: Channels of the images.
        img_size: Resolution that sets the size of position-bias tables;
            images may have any size.
        global_pool: ``'avg'``, or ``''`` for the last map.
        features_only: Whether to create a ``mmdat.models.DAT`` without
            pooling and classifier. It returns a tuple of normalised maps (B,
            C, H, W) and ignores `num_classes`, `global_pool` and
            `drop_rate`.
        out_indices: Stages whose maps are returned with `features_only`, all
            by default.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after projections.
        **kwargs: Further arguments of ``mmdat.models.DAT``, such as
            `drop_path_rate` or `with_cp`.

    Returns:
        A ``mmdat.zoo.DATClassifier``, or a ``mmdat.models.DAT``.

    Raises:
        UserError: There is no such model, an argument is invalid, or the file
            does not fit the model; the message says what to do.

    Examples:
        >>> import mmdat, torch
        >>> model = mmdat.create_model('dat_tiny', num_classes=10).eval()
        >>> tuple(model(torch.rand(1, 3, 64, 64)).shape)
        (1, 10)
    """
    arch = name if isinstance(name, Mapping) else arch_of(name)
    require(
        isinstance(features_only, bool),
        'features_only must be True or False',
        features_only,
    )
    if pretrained is True:
        raise SettingError(
            'pretrained must be a file of weights, as those that the authors '
            'released lie on cloud drives: download one and give its path; '
            'got True.'
        )
    if out_indices is not None and not features_only:
        raise SettingError(
            f'out_indices must come with features_only=True; got '
            f'{out_indices!r}.'
        )
    if features_only:
        chosen = range(NUM_STAGES) if out_indices is None else out_indices
        require(
            isinstance(chosen, Sequence),
            'out_indices must be a list of stage numbers',
            chosen,
        )
        model: nn.Module = DAT(
            arch,
            in_channels=in_chans,
            out_indices=tuple(stage_numbers(chosen)),
            img_size=img_size,
            drop_rate=proj_drop_rate,
            **kwargs,
        )
    else:
        model = DATClassifier(
            arch,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            img_size=img_size,
            drop_rate=drop_rate,
            proj_drop_rate=proj_drop_rate,
            **kwargs,
        )
        model.pretrained_cfg = default_cfg(arch, model.backbone.arch)
        model.default_cfg = model.pretrained_cfg
    if pretrained:
        load_weights(model, pretrained)
    return model
