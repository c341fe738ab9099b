# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks how pictures are normalised, padded and ordered by colour."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from .parts import Part
from .report import Report

# Mean of ImageNet in red, green and blue.
_MEAN = (123.675, 116.28, 103.53)
# Words in transforms that may scale or order values themselves.
_SCALING = ('normal', 'float', 'scale', 'albu', 'tensor', 'color', 'channel')
# Transforms with such words that keep the scale.
_KEEPING = ('PhotoMetricDistortion', 'ColorTransform', 'ColorJitter')
_RESIZING = ('RandomResize', 'RandomChoiceResize', 'ResizeShortestEdge')


def preprocessor_of(cfg: Config) -> tuple[str, Mapping[str, Any]] | None:
    """Returns place and settings of the preprocessor that runs."""
    model = cfg.get('model') or {}
    for place, found in (
        ('model.data_preprocessor', model.get('data_preprocessor')),
        ('data_preprocessor', cfg.get('data_preprocessor')),
    ):
        if isinstance(found, Mapping):
            return place, found
    return None


def check_preprocessing(
    cfg: Config, parts: list[Part], report: Report
) -> None:
    """Reports a normalisation that is not for the pictures as loaded.

    Args:
        cfg: The config.
        parts: The data sets of the run.
        report: Receives the problems.
    """
    found = preprocessor_of(cfg)
    if found is None or not parts:
        return
    place, settings = found
    mean, std = settings.get('mean'), settings.get('std')
    if not _numbers(mean) or not _numbers(std):
        if mean is None and std is None and _reads_pictures(parts):
            _tell_none(cfg, place, report)
        return
    if any(value <= 0 for value in std):
        report.error(f'{place}.std must be above 0; got {list(std)}.')
        return
    if not _reads_pictures(parts):
        return
    # Pictures are loaded as 0 to 255.
    if 0 < max(map(abs, mean)) <= 1 and max(std) <= 1:
        report.error(
            f'Pictures are loaded with values of 0 to 255; {place}.mean='
            f'{list(mean)} and std={list(std)} are for values of 0 to 1, so '
            f'multiply both by 255.'
        )
        return
    _check_order(settings, place, list(mean), report)


def _numbers(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) > 0
        and all(type(value) in (int, float) for value in values)
    )


def _reads_pictures(parts: list[Part]) -> bool:
    """Returns whether nothing in the pipelines may scale or turn colours."""
    for part in parts:
        if not part.transforms('LoadImageFromFile'):
            return False
        for transform in part.transforms(''):
            kind = transform.get('type')
            name = getattr(kind, '__name__', str(kind)).rpartition('.')[2]
            if name in (*_KEEPING, *_RESIZING):
                continue
            if any(word in name.lower() for word in _SCALING):
                return False
            if transform.get('to_float32') or transform.get('channel_order'):
                return False
    return True


def _tell_none(cfg: Config, place: str, report: Report) -> None:
    backbone = (cfg.get('model') or {}).get('backbone')
    start = backbone.get('init_cfg') if isinstance(backbone, Mapping) else None
    if start:
        report.warn(
            f'{place} has no mean and std, so the model gets values of 0 to '
            f'255; the released weights of DAT are for mean='
            f'[123.675, 116.28, 103.53] and std=[58.395, 57.12, 57.375] with '
            f'red first.'
        )


def _check_order(
    settings: Mapping[str, Any], place: str, mean: list, report: Report
) -> None:
    """Warns of the mean of red for blue."""
    # mmpretrain calls it to_rgb.
    name = 'bgr_to_rgb'
    if 'to_rgb' in settings or place == 'data_preprocessor':
        name = 'to_rgb'
    turned = bool(settings.get('to_rgb') or settings.get('bgr_to_rgb'))
    if settings.get('rgb_to_bgr'):
        return
    for order, means in ((True, _MEAN), (False, _MEAN[::-1])):
        close = len(mean) == 3 and all(
            abs(a - b) < 1 for a, b in zip(mean, means)
        )
        if close and turned is not order:
            first = 'red' if order else 'blue'
            report.warn(
                f'{place}.mean has {first} first, and {name}={turned} gives '
                f'{"blue" if order else "red"} first, so the colours would '
                f'be normalised by the values of others; set {name}={order}.'
            )


def check_padding(
    cfg: Config, ignored: int, whose: str, report: Report
) -> None:
    """Compares what label maps are padded with to the ignored label.

    Args:
        cfg: The config.
        ignored: ``ignore_index`` of a data set of mmseg.
        whose: Its place in the config.
        report: Receives the problems.
    """
    found = preprocessor_of(cfg)
    if found is None:
        return
    place, settings = found
    padded = settings.get('size') or settings.get('size_divisor')
    value = settings.get('seg_pad_val', 255)
    if padded and value != ignored:
        report.error(
            f'Label maps must be padded with the ignored label; '
            f'{place}.seg_pad_val is {value} and ignore_index of {whose} is '
            f'{ignored}, so set both to one value.'
        )
