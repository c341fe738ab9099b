# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Sends random input through whole models; only shapes matter.

The cost of a detector depends on its number of proposals. To make counts
comparable, the heads get the largest number of proposals that they allow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..models import DAT
from ..utils.errors import UserError
from ..utils.packages import enter_scope

# (H, W) of the images in the tables of papers.
USUAL_SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 2048)}


def build_model(cfg: Config) -> nn.Module:
    """Builds the model of a config on the CPU, without reading weights.

    Raises:
        UserError: The config has no model, or one that cannot be built.
    """
    if cfg.get('model') is None:
        raise UserError(
            f'The config must have a model; {cfg.filename} has none, so use a '
            f'config outside _base_.'
        )
    enter_scope(cfg.get('default_scope'))
    # A copy, as some models write into their settings (mmdet's DINO).
    settings = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:  # as mmengine's runner does
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    try:
        return MODELS.build(settings)
    except (TypeError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f'The model of {cfg.filename} cannot be built; correct its '
            f'settings: {error}'
        ) from error


def usual_shape(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Returns the usual (H, W) for comparing models of this task."""
    if cfg.get('default_scope') in USUAL_SHAPES:
        return USUAL_SHAPES[cfg.default_scope]
    for module in model.modules():
        if isinstance(module, DAT):
            height, width = module.arch.stages[0].map_size
            return 4 * height, 4 * width
    return 224, 224


def forward_whole(model: nn.Module, images: Tensor) -> Any:
    """Runs a model as in a test, without selecting and suppressing boxes.

    Args:
        model: A detector, segmentor, classifier or any other module.
        images: Preprocessed images (B, 3, H, W).
    """
    if hasattr(model, 'rpn_head') and hasattr(model, 'roi_head'):
        return _two_stage(model, images)
    if hasattr(model, 'extract_feat') and hasattr(model, 'bbox_head'):
        return model.bbox_head(model.extract_feat(images))
    return model(images)


def _two_stage(model: nn.Module, images: Tensor) -> None:
    """Runs the RPN, the box heads on all proposals and the mask heads."""
    features = model.extract_feat(images)
    model.rpn_head(features)
    heads = model.roi_head
    proposals = images.new_zeros(model.test_cfg.rpn.max_per_img, 5)
    detections = images.new_zeros(model.test_cfg.rcnn.max_per_img, 5)
    cascade = isinstance(heads.bbox_head, nn.ModuleList)
    stages = [(i,) for i in range(len(heads.bbox_head))] if cascade else [()]
    with _regions_by_shape(heads):
        for stage in stages:
            heads._bbox_forward(*stage, features, proposals)
            if heads.with_mask:
                heads._mask_forward(*stage, features, detections)


@contextmanager
def _regions_by_shape(heads: nn.Module) -> Iterator[None]:
    """Replaces RoIAlign, which needs values, by maps of its shape."""

    def cut(extractor: nn.Module, features: Any, rois: Tensor, *_) -> Tensor:
        size = extractor.roi_layers[0].output_size
        return features[0].new_zeros(
            len(rois), extractor.out_channels, *torch.Size(size)
        )

    extractors = [m for m in heads.modules() if hasattr(m, 'roi_layers')]
    try:
        for extractor in extractors:
            extractor.forward = partial(cut, extractor)
        yield
    finally:
        for extractor in extractors:
            del extractor.forward
