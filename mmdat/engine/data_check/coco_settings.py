# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks settings of COCO data sets that mmdet reads late, or not at all."""

from .parts import Part
from .report import Report, counted

_FILTERS = ('filter_empty_gt', 'min_size')


def check_settings(part: Part, images: int, report: Report) -> None:
    """Checks settings that are not read, or fail later."""
    for name in part.settings.get('filter_cfg') or ():
        if name not in _FILTERS:
            report.error(
                f'{part.place}.filter_cfg may hold {" and ".join(_FILTERS)}; '
                f'got {name!r}, which would have no effect.'
            )
    indices = part.settings.get('indices')
    single = type(indices) is int
    wanted = [indices] if single else indices
    for index in wanted if isinstance(wanted, list | tuple) else ():
        most = images if single else images - 1
        if type(index) is int and not -images <= index <= most:
            report.error(
                f'{part.place}.indices must be of images that are there; got '
                f'{index}, and {part.annotations} lists '
                f'{counted(images, "image")}.'
            )
            break
    palette = (part.settings.get('metainfo') or {}).get('palette')
    classes = part.classes or ()
    if isinstance(palette, list | tuple) and len(palette) < len(classes):
        report.error(
            f'{part.place}.metainfo needs one colour for each class; its '
            f'palette has {counted(len(palette), "colour")}, and its '
            f'classes are {len(part.classes)}, so correct the palette or '
            f'leave it out.'
        )
