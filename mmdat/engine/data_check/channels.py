# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks the backbone's channels against those of neck and heads."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from .parts import name_of
from .report import Report

# Necks of mmpretrain that keep the number of channels.
_POOLING = ('GlobalAveragePooling', 'GeneralizedMeanPooling')


def check_channels(
    cfg: Config, channels: Sequence[int], report: Report
) -> None:
    """Compares the first layers after the backbone with its maps.

    Args:
        cfg: The config, whose ``model`` has the backbone.
        channels: Channels of the backbone's output maps, finest first.
        report: Receives the problems.
    """
    model = cfg.get('model') or {}
    neck = model.get('neck')
    if isinstance(neck, list | tuple) and neck:
        neck, place = neck[0], 'model.neck.0'
    else:
        place = 'model.neck'
    maps = list(channels)
    if isinstance(neck, Mapping) and name_of(neck.get('type')) not in _POOLING:
        wanted = neck.get('in_channels')
        if isinstance(wanted, list | tuple):
            if list(wanted) != maps:
                _tell(f'{place}.in_channels', list(wanted), maps, maps, report)
        elif isinstance(wanted, int) and wanted not in maps:
            _tell(f'{place}.in_channels', wanted, maps[-1], maps, report)
        return
    for key in ('decode_head', 'auxiliary_head'):
        heads = model.get(key)
        several = isinstance(heads, list | tuple)
        for i, head in enumerate(heads if several else [heads]):
            place = f'model.{key}.{i}' if several else f'model.{key}'
            if isinstance(head, Mapping):
                _check_head(head, place, maps, report)
    head = model.get('head')
    if isinstance(head, Mapping) and neck is not None:
        wanted = head.get('in_channels')
        if isinstance(wanted, int) and wanted != maps[-1]:
            _tell('model.head.in_channels', wanted, maps[-1], maps, report)


def _check_head(
    head: Mapping[str, Any], place: str, maps: list[int], report: Report
) -> None:
    """Checks a head of mmseg, which selects maps with ``in_index``."""
    wanted = head.get('in_channels')
    index = head.get('in_index', -1)
    several = isinstance(index, list | tuple)
    indices = list(index) if several else [index]
    if not all(type(i) is int for i in indices):
        return
    beyond = [i for i in indices if not -len(maps) <= i < len(maps)]
    if beyond:
        report.error(
            f'in_index must be the number of a map of the backbone; '
            f'{place}.in_index has {beyond[0]}, and the backbone outputs '
            f'{len(maps)} maps with {maps} channels, so correct in_index or '
            f'the out_indices of the backbone.'
        )
        return
    if isinstance(wanted, int) and not several:
        if wanted != maps[index]:
            _tell(f'{place}.in_channels', wanted, maps[index], maps, report)
    elif isinstance(wanted, list | tuple):
        there = [maps[i] for i in indices] if several else maps
        if (
            list(wanted) != there
            and 'in_index' in head
            or (len(wanted) == len(maps) and list(wanted) != maps)
        ):
            _tell(f'{place}.in_channels', list(wanted), there, maps, report)


def _tell(
    place: str, found: Any, wanted: Any, maps: list[int], report: Report
) -> None:
    report.error(
        f"in_channels must be the channels of the backbone's maps, {maps}; "
        f'{place} is {found}, so set it to {wanted}.'
    )


def unused_maps(cfg: Config, number: int) -> list[int]:
    """Returns the numbers of maps that neither neck nor heads read.

    It covers only certain cases: a feature pyramid that starts at a later
    level, heads of mmseg without a neck, and a pooled classifier, whose head
    reads the last map.
    """
    model = cfg.get('model') or {}
    neck = model.get('neck')
    if isinstance(neck, list | tuple):
        neck = neck[0] if neck else None
    if isinstance(neck, Mapping):
        if name_of(neck.get('type')) in _POOLING:
            return list(range(number - 1))
        start = neck.get('start_level', 0)
        return list(range(min(start, number))) if type(start) is int else []
    if model.get('decode_head') is None:
        return []
    read: set[int] = set()
    for key in ('decode_head', 'auxiliary_head'):
        heads = model.get(key)
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            if head is None:
                continue
            if not isinstance(head, Mapping) or 'in_channels' not in head:
                return []
            index = head.get('in_index', -1)
            if isinstance(head['in_channels'], list | tuple):
                index = head.get('in_index', list(range(number)))
            for i in index if isinstance(index, list | tuple) else [index]:
                if type(i) is not int or not -number <= i < number:
                    return []
                read.add(i % number)
    return [i for i in range(number) if i not in read]
