# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Rules for the entries of a COCO file, and the sentences about them."""

from collections.abc import Callable, Mapping

from .coco_file import CocoFile
from .report import Report

# Rule: what is wrong with an annotation; why, and what to do.
ALWAYS = {
    'bbox': (
        'no bbox',
        'mmdet needs the box of every object, so add it or remove the '
        'annotation',
    ),
    'bbox length': (
        'a bbox that is not four numbers',
        'write it as [x, y, width, height]',
    ),
    'area': ('no area', 'mmdet needs the area of every object, so add it'),
    'area value': (
        'an area that is not a number',
        'write the area in square pixels',
    ),
    'iscrowd value': (
        'an iscrowd that is neither 0 nor 1',
        'mmdet takes it for a crowd and does not train on it, so write 0 or 1',
    ),
}
MASKS = {
    'segmentation': (
        'no segmentation, or an empty one',
        'the model needs masks, so add a polygon or remove the annotation',
    ),
    'flat': (
        'a segmentation that is not a list of polygons',
        'write each polygon as a flat list, [[x, y, x, y, ...]]',
    ),
    'runs': (
        'a segmentation with damaged RLE runs',
        'the runs must add up to height x width of the mask, so write the '
        'mask again',
    ),
    'runs size': (
        'a mask with another size than its image',
        'the size of the mask must be [height, width] of the image',
    ),
}
POLYGONS = {
    'polygon': (
        'a polygon with fewer than 6 numbers or an odd number of them',
        'a polygon needs at least three points',
    ),
}
PART = {
    'part of polygon': (
        'several polygons, one with fewer than 6 or an odd number of numbers',
        'a polygon needs at least three points',
    ),
}
FIRST = {
    'first polygon': (
        'several polygons, the first with four numbers',
        'pycocotools would read all of them as boxes, so give the first '
        'polygon at least three points',
    ),
}
CROWD = {
    'iscrowd': (
        'no iscrowd',
        "pycocotools needs it for every object, so add 'iscrowd': 0",
    )
}
# What is wrong with an entry of a file, with a place for the example.
_FILE = {
    'image': 'an image that is not a JSON object: {}',
    'image id': 'an image without an id: {}',
    'file_name': 'an image without a file_name: id {}',
    'width': 'an image without a width in pixels: id {}',
    'height': 'an image without a height in pixels: id {}',
    'category': 'a category without an id or a name: {}',
    'annotation': 'an annotation that is not a JSON object: {}',
    'annotation id': 'an annotation without an id: entry {}',
    'image_id': 'an annotation without an image_id: id {}',
    'category_id': 'an annotation without a category_id: id {}',
    'twice: image': 'two images with the id {}',
    'twice: annotation': 'two annotations with the id {}',
    'twice: category': 'two categories with the id {}',
    'twice: category name': 'two categories with the name {}',
}


def check_file(file: CocoFile, report: Report) -> None:
    """Reports problems of a file that affect all data sets that read it."""
    for rule, what in _FILE.items():
        number, first = file.flaws.of(rule)
        if number:
            more = f' ({number} of this kind)' if number > 1 else ''
            report.error(
                f'Images, annotations and categories of a COCO file need '
                f'unique ids and all required keys; {file.path} has '
                f'{what.format(first)}{more}, so correct it or export it '
                f'again.'
            )


def check_rules(
    file: CocoFile,
    rules: Mapping[str, tuple[str, str]],
    ids: set | None,
    place: str,
    tell: Callable[[str], None],
    lost: str = '',
) -> None:
    """Tells of annotations of these categories that violate the rules."""
    for rule, (what, why) in rules.items():
        number, first = file.flaws.of(rule, ids)
        if number:
            more = f' ({number} annotations of this kind)' * (number > 1)
            tell(
                f'{place}: annotation {first} of {file.path} has {what}'
                f'{more}; {why}.{lost}'
            )
