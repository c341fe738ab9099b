# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks how data sets name their classes."""

from pathlib import Path

from .parts import Part
from .report import Report


def check_names(part: Part, report: Report) -> bool:
    """Reports names that mmengine does not read; returns whether it can."""
    metainfo = part.settings.get('metainfo') or {}
    given = metainfo.get('classes')
    if part.settings.get('classes') is not None:
        report.error(
            f'Names of classes must be in metainfo.classes; {part.place} has '
            f'the setting classes of MMCV 1.x, so write '
            f'metainfo=dict(classes=...).'
        )
        return False
    if 'CLASSES' in metainfo and given is None:
        report.error(
            f'Names of classes must be in metainfo.classes; '
            f"{part.place}.metainfo has 'CLASSES', so write it in lower case."
        )
        return False
    if isinstance(given, str) and not Path(given).is_file():
        report.error(
            f'{part.place}.metainfo.classes must be a tuple of names, or a '
            f'file with one name per line; got {given!r}, so write '
            f'({given!r},).'
        )
        return False
    return True


def check_same_names(parts: list[Part], report: Report) -> None:
    """Reports splits whose classes have other names or another order.

    A label is the number of a class, so it means another class there. mmdet
    numbers classes in the order of a file's categories instead, so their order
    in ``metainfo`` does not matter.
    """
    first: Part | None = None
    for part in parts:
        if not part.classes or part.kind is None:
            continue
        if first is None:
            first = part
            continue
        names, others = list(part.classes), list(first.classes)
        if len(names) != len(others):
            continue  # at most one of them fits the heads
        if part.kind == 'coco':
            names, others = sorted(map(str, names)), sorted(map(str, others))
        differ = [(a, b) for a, b in zip(names, others) if a != b]
        if differ:
            name, other = differ[0]
            report.error(
                f'All splits need the same classes in the same order; '
                f'{part.place} has {name!r} where {first.place} has '
                f'{other!r} ({len(differ)} of {len(names)} differ), so give '
                f'both the same metainfo.classes.'
            )
