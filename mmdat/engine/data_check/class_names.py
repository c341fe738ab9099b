# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks how a data set of mmdet or mmseg names its classes."""

from pathlib import Path

from .parts import Part
from .report import Report


def check_names(part: Part, report: Report) -> bool:
    """Reports names that mmengine does not read; returns whether it can."""
    metainfo = part.settings.get('metainfo') or {}
    given = metainfo.get('classes')
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
