# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The whole model, from a published state dict."""

from typing import NamedTuple

import numpy as np

from .block import block
from .embed import down_project, patch_embed
from .layers import layer_norm, linear
from .layout import Params, from_map, subset, to_map
from .variants import Variant


class Stages(NamedTuple):
    """What the four stages give.

    Attributes:
        maps: Outputs of the stages before any output norm, (B, C, H, W).
        points_yx: Deformed points (B, groups, Hk, Wk, 2) by (stage, block).
    """

    maps: tuple[np.ndarray, ...]
    points_yx: dict[tuple[int, int], np.ndarray]


def _one_image(image, params, variant):
    """Maps (H, W, C) and points (groups, Hk, Wk, 2) of one image."""
    x = patch_embed(
        to_map(image), subset(params, 'patch_proj.'), variant.layers
    )
    maps, points_yx = [], {}
    for stage, kinds in enumerate(variant.stages):
        if stage:
            x = down_project(
                x, subset(params, f'down_projs.{stage - 1}.'), variant.layers
            )
        own = subset(params, f'stages.{stage}.')
        for index in range(len(kinds)):
            x, points = block(x, own, variant, stage, index)
            if points is not None:
                points_yx[stage, index] = points
        maps.append(x)
    return maps, points_yx


def forward_stages(
    images: np.ndarray, params: Params, variant: Variant
) -> Stages:
    """Runs the four stages.

    Args:
        images: (B, 3, H, W).
        params: A published state dict, flat, of arrays.
        variant: See `variants.VARIANTS`.
    """
    maps, points = zip(
        *(_one_image(image, params, variant) for image in images), strict=True
    )
    return Stages(
        tuple(
            np.stack([from_map(own) for own in stage])
            for stage in zip(*maps, strict=True)
        ),
        {
            place: np.stack([own[place] for own in points])
            for place in points[0]
        },
    )


def _norm(maps: np.ndarray, params: Params, name: str) -> np.ndarray:
    """Layer norm over the channels of (B, C, H, W)."""
    own = subset(params, f'{name}.norm.')
    normed = layer_norm(maps.transpose(0, 2, 3, 1), own['weight'], own['bias'])
    return normed.transpose(0, 3, 1, 2)


def dense_outputs(stages: Stages, params: Params) -> tuple[np.ndarray, ...]:
    """The four maps, each with a layer norm of its own, (B, C, H, W)."""
    return tuple(
        _norm(maps, params, f'norms.{i}') for i, maps in enumerate(stages.maps)
    )


def logits(stages: Stages, params: Params) -> np.ndarray:
    """Norm of the last stage, mean over places, linear: (B, classes)."""
    pooled = _norm(stages.maps[-1], params, 'cls_norm').mean(axis=(2, 3))
    head = subset(params, 'cls_head.')
    return linear(pooled, head['weight'], head['bias'])
