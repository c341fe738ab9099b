# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares strides and channels of a detector's heads with its pyramid.

Anchors of another stride than their map are a wrong scale, and nothing fails:
the model trains, and finds less.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from .parts import name_of
from .report import Report

# Necks whose levels are the backbone's maps, and then maps of half the size.
_PYRAMIDS = ('FPN', 'PAFPN', 'FPN_CARAFE', 'ChannelMapper')
# Settings of generators of anchors or points.
_GENERATORS = ('anchor_generator', 'prior_generator')
# Heads whose first layer reads the levels of the neck as they are.
_DENSE = ('rpn_head', 'bbox_head')


def check_strides(cfg: Config, strides: Sequence[int], report: Report) -> None:
    """Compares a detector's heads with the levels of its neck.

    Args:
        cfg: The config.
        strides: Strides of the backbone's output maps in pixels.
        report: Receives the problems.
    """
    model = cfg.get('model') or {}
    neck = model.get('neck')
    necks = neck if isinstance(neck, list | tuple) else [neck]
    if not all(isinstance(one, Mapping) for one in necks) or not necks:
        return
    # What follows a pyramid, such as BFP or DyHead, keeps its levels.
    if name_of(necks[0].get('type')) not in _PYRAMIDS:
        return
    levels = _levels(necks[0], list(strides))
    if levels is None:
        return
    width = necks[0].get('out_channels') if len(necks) == 1 else None
    for place, generator in _generators(model):
        _check_generator(place, generator, levels, report)
    for place, extractor in _extractors(model):
        _check_extractor(place, extractor, levels, report)
    if type(width) is int:
        _check_width(model, width, report)


def _levels(neck: Mapping[str, Any], strides: list[int]) -> list[int] | None:
    """Returns the strides of a pyramid's levels, None if unknown."""
    start, end = neck.get('start_level', 0), neck.get('end_level', -1)
    number = neck.get('num_outs')
    if name_of(neck.get('type')) == 'ChannelMapper':
        start, end = 0, -1
        number = len(strides) if number is None else number
    if type(number) is not int or type(start) is not int or end != -1:
        return None
    levels = strides[start:]
    if not levels or number < len(levels):
        return None  # the neck itself refuses these
    while len(levels) < number:
        levels.append(levels[-1] * 2)
    return levels


def _generators(
    model: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key in _DENSE:
        head = model.get(key)
        if not isinstance(head, Mapping):
            continue
        for name in _GENERATORS:
            generator = head.get(name)
            if isinstance(generator, Mapping):
                yield f'model.{key}.{name}', generator
        if 'FCOS' in name_of(head.get('type')) and 'strides' in head:
            yield f'model.{key}', head


def _extractors(
    model: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    roi_head = model.get('roi_head')
    if not isinstance(roi_head, Mapping):
        return
    for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
        found = roi_head.get(key)
        several = isinstance(found, list | tuple)
        for i, one in enumerate(found if several else [found]):
            if isinstance(one, Mapping):
                yield f'model.roi_head.{key}' + f'.{i}' * several, one


def _check_generator(
    place: str,
    generator: Mapping[str, Any],
    levels: list[int],
    report: Report,
) -> None:
    found = generator.get('strides')
    if not isinstance(found, list | tuple) or not found:
        return
    found = [one[0] if isinstance(one, list | tuple) else one for one in found]
    if found != levels:
        report.error(
            f'Every level of the neck needs its own stride; {place}.strides '
            f'is {found} and the levels of the neck have the strides '
            f'{levels}, so correct them, the out_indices of the backbone or '
            f'start_level and num_outs of the neck.'
        )


def _check_extractor(
    place: str,
    extractor: Mapping[str, Any],
    levels: list[int],
    report: Report,
) -> None:
    found = extractor.get('featmap_strides')
    if not isinstance(found, list | tuple) or not found:
        return
    if list(found) != levels[: len(found)]:
        report.error(
            f'Regions must be cut from maps of their stride; '
            f'{place}.featmap_strides is {list(found)} and the levels of the '
            f'neck have the strides {levels}, so set it to '
            f'{levels[: len(found)]}.'
        )


def _check_width(model: Mapping[str, Any], width: int, report: Report) -> None:
    """Compares the channels of the neck with those that heads read."""
    wrong = {}
    for key in _DENSE:
        head = model.get(key)
        if isinstance(head, Mapping):
            wrong[f'model.{key}.in_channels'] = head.get('in_channels')
    roi_head = model.get('roi_head')
    for kind in ('bbox', 'mask') if isinstance(roi_head, Mapping) else ():
        for name, key in (
            (f'{kind}_roi_extractor', 'out_channels'),
            (f'{kind}_head', 'in_channels'),
        ):
            one = roi_head.get(name)
            several = isinstance(one, list | tuple)
            for i, settings in enumerate(one if several else [one]):
                if isinstance(settings, Mapping):
                    place = f'model.roi_head.{name}' + f'.{i}' * several
                    wrong[f'{place}.{key}'] = settings.get(key)
    places = [
        f'{place}={found}'
        for place, found in wrong.items()
        if type(found) is int and found != width
    ]
    if places:
        report.error(
            f'Heads must read the channels of the neck; '
            f'model.neck.out_channels is {width}, and the model has '
            f'{", ".join(places)}, so set all to one value.'
        )
