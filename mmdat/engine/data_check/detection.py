# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks COCO files against what mmdet and pycocotools read from them."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .coco_file import CocoFile, read_coco
from .parts import Part, metrics_of, name_of
from .pictures import check_coco_pictures
from .report import Report, counted, listed

# Rule: what is wrong with an annotation, and what to do.
_ALWAYS = {
    'bbox': ('no bbox', 'mmdet needs one for every object'),
    'bbox length': (
        'a bbox that is not four numbers',
        'it must be [x, y, width, height]',
    ),
    'area': ('no area', 'mmdet needs it for every object'),
    'area value': ('an area that is not a number', 'mmdet compares it with 0'),
    'iscrowd value': (
        'an iscrowd that is neither 0 nor 1',
        'mmdet takes it for a crowd, which is not learnt',
    ),
}
_MASKS = {
    'segmentation': (
        'no segmentation, or an empty one',
        'the model needs masks, so add a polygon or remove the object',
    ),
    'flat': (
        'a segmentation that is not a list of polygons',
        'each must be a flat list of numbers in a list, [[x, y, x, y, ...]]',
    ),
    'runs': (
        'a segmentation with damaged RLE runs',
        'the runs of a mask must add up to height x width of its size',
    ),
    'runs size': (
        'a mask of another size than its picture has in the file',
        'size must be [height, width]',
    ),
}
_POLYGONS = {
    'polygon': (
        'a polygon of fewer than 6 numbers or an odd number of them',
        'a polygon needs at least three points',
    ),
}
_PART = {
    'part of polygon': (
        'among others a polygon of fewer than 6 numbers or an odd number',
        'a polygon needs at least three points',
    ),
}
_FIRST = {
    'first polygon': (
        'a first polygon of four numbers before longer ones',
        'it needs three points, and pycocotools would read it as a box',
    ),
}
_CROWD = {'iscrowd': ('no iscrowd', 'pycocotools needs it for every object')}
# From this share of boxes beyond their pictures on, all are taken for corners.
_MOST_BEYOND = 0.25
# What is wrong with a whole file.
_FILE = {
    'image': ('an image that is not a JSON object', ''),
    'image id': ('an image without an id', ''),
    'file_name': ('an image without a file_name, that of id', ''),
    'width': ('an image without a width in pixels, that of id', ''),
    'height': ('an image without a height in pixels, that of id', ''),
    'category': ('a category without id or name', ''),
    'annotation': ('an annotation that is not a JSON object', ''),
    'annotation id': ('an annotation without an id, entry', ''),
    'image_id': ('an annotation without an image_id, that of id', ''),
    'category_id': ('an annotation without a category_id, that of id', ''),
    'twice: image': ('one id for two images', ''),
    'twice: annotation': ('one id for two annotations', ''),
    'twice: category': ('one id for two categories', ''),
    'twice: category name': ('one name for two categories', ''),
}


def read(part: Part, report: Report) -> CocoFile | None:
    """Reads the COCO file of a data set; returns None if that fails."""
    path = part.annotations
    if path is None or not part.is_local or not path.is_file():
        return None
    return _readable(path, f'{part.place}.ann_file', report)


def _readable(path: Path, place: str, report: Report) -> CocoFile | None:
    file = read_coco(path)
    if file.problem is None:
        return file
    advice = 'copy, download or write it again'
    if 'byte-order' in file.problem or 'UTF' in file.problem:
        advice = 'save it as UTF-8 without a byte-order mark'
    report.error(
        f"{place} must be a whole JSON file of COCO's format; {path} "
        f'{file.problem}, so {advice}.'
    )
    return None


def check_file(file: CocoFile, report: Report) -> None:
    """Reports problems of a file that affect all data sets that read it."""
    for rule, (what, _) in _FILE.items():
        number, first = file.flaws.of(rule)
        if number:
            more = f' ({number} of this kind)' if number > 1 else ''
            report.error(
                f'Images, annotations and categories of a COCO file need '
                f'unique ids and all required keys; {file.path} has '
                f'{what}: {first}{more}.'
            )


def check_classes(part: Part, file: CocoFile, report: Report) -> None:
    """Compares the names of classes with the names of categories."""
    metainfo = part.settings.get('metainfo') or {}
    if 'CLASSES' in metainfo and 'classes' not in metainfo:
        report.error(
            f'{part.place}.metainfo names its classes with a key that is not '
            f"read, 'CLASSES'; write classes=... in lower case."
        )
        return
    given = metainfo.get('classes')
    if isinstance(given, str) and not Path(given).is_file():
        report.error(
            f'{part.place}.metainfo.classes must be a tuple of names, or a '
            f'file of them; got {given!r}, so write ({given!r},).'
        )
        return
    classes = part.classes
    names = [name for _, name in file.categories]
    if not classes:
        return
    twice = [name for name in classes if classes.count(name) > 1]
    if twice:
        report.error(
            f'Names of classes must differ; {part.place}.metainfo.classes '
            f'has {twice[0]!r} twice.'
        )
    unknown = [name for name in classes if name not in names]
    unnamed = [name for name in names if name not in classes]
    if unknown:
        report.error(_unknown_sentence(part, file, unknown, names))
    elif unnamed:
        report.warn(
            f'{file.path} has '
            f'{counted(len(unnamed), "category", "categories")} that no class '
            f'of {part.place} names ({listed(unnamed)}); '
            f'{"its" if len(unnamed) == 1 else "their"} objects are left out.'
        )
    kept = [name for name in names if name in classes]
    if len(kept) == len(classes) and list(classes) != kept and not unknown:
        differ = ((a, b) for a, b in zip(classes, kept) if a != b)
        pair = next(differ, (classes[-1], kept[-1]))
        report.warn(
            f'mmdet numbers classes in the order of the categories of '
            f'{file.path}, and {part.place}.metainfo.classes has another '
            f'({pair[0]!r} where the file has {pair[1]!r}), so pictures and '
            f'predictions would bear wrong names; name the classes in the '
            f'order of the file.'
        )


def _unknown_sentence(
    part: Part, file: CocoFile, unknown: list[str], names: list[str]
) -> str:
    sentence = (
        f'Every class must be the name of a category; '
        f'{file.path} has no category {listed(map(repr, unknown))}, which '
        f'{part.place} has among its classes: '
    )
    close = get_close_matches(str(unknown[0]), map(str, names), 1)
    has = f'its categories are {listed(map(repr, names), 10)}'
    if not names:
        return f'{sentence}its list of categories is empty.'
    if 'classes' not in (part.settings.get('metainfo') or {}):
        return (
            f'{sentence}{has}, so set {part.place}.metainfo=dict(classes='
            f'(...)), also for the other splits.'
        )
    if close:
        return f'{sentence}a similar name is {close[0]!r}; {has}.'
    return f'{sentence}{has}.'


def chosen(part: Part, file: CocoFile) -> set:
    """Returns the ids of the categories that the classes name."""
    classes = part.classes
    return {
        ident
        for ident, name in file.categories
        if classes is None or name in classes
    }


def check_objects(part: Part, file: CocoFile, report: Report) -> None:
    """Checks the annotations that the data set will read."""
    _broken_rules(file, _ALWAYS, None, part.place, report.error, report)
    ids = chosen(part, file)
    loaders = part.transforms('LoadAnnotations')
    masked = any(loader.get('with_mask') for loader in loaders)
    if masked:
        _broken_rules(file, _MASKS, ids, part.place, report.error, report)
        rules = _POLYGONS | _PART | _FIRST
        _broken_rules(file, rules, ids, part.place, report.warn, report)
    number, first = file.flaws.of('no area', ids)
    if number:
        report.warn(
            f'{file.path} has {counted(number, "object")} without area or '
            f'outside of the picture, the first annotation {first}; mmdet '
            f'leaves such out.'
        )
    _check_corners(file, ids, report)
    known = {ident for ident, _ in file.categories}
    lost = [c for c in file.images_of if c not in known and c is not None]
    if lost:
        report.warn(
            f'{file.path} has annotations of categories that it does not '
            f'list (category_id {listed(lost)}); they are left out.'
        )
    strangers = set().union(*file.images_of.values()) - set(file.images)
    if strangers:
        report.warn(
            f'{file.path} has annotations of '
            f'{counted(len(strangers), "image")} that it does not list '
            f'(image_id {listed(sorted(strangers, key=str), 3)}); they are '
            f'left out.'
        )


def _check_corners(file: CocoFile, ids: set, report: Report) -> None:
    """Reports boxes that leave their picture, as pairs of corners do."""
    number, first = file.flaws.of('beyond', ids)
    total = sum(file.objects_of[i] for i in ids)
    if number:
        many = number >= total * _MOST_BEYOND
        (report.error if many else report.warn)(
            f'A bbox must be [x, y, width, height] in pixels, not two '
            f'corners; {number} of the {counted(total, "object")} of '
            f'{file.path} reach more than a pixel beyond their picture, the '
            f'first annotation {first}.'
        )


def _broken_rules(
    file: CocoFile,
    rules: Mapping[str, tuple[str, str]],
    ids: set | None,
    place: str,
    tell: Any,
    report: Report,
) -> None:
    for rule, (what, why) in rules.items():
        number, first = file.flaws.of(rule, ids)
        if number:
            more = f', and {number - 1} more have' if number > 1 else ''
            lost = ''
            if tell == report.warn:
                lost = ' mmdet leaves it out.'
            tell(
                f'{place}: annotation {first} of {file.path} has {what}'
                f'{more}; {why}.{lost}'
            )


def number_of_images(part: Part, file: CocoFile) -> int:
    """Returns the number of images that the data set keeps."""
    kept = set(file.images)
    rules = part.settings.get('filter_cfg')
    if rules and not part.settings.get('test_mode'):
        if rules.get('filter_empty_gt'):
            sets = [file.images_of.get(i, set()) for i in chosen(part, file)]
            kept &= set().union(*sets)
        least = rules.get('min_size', 0)
        kept = {
            i
            for i in kept
            if min(side or least for side in file.images[i][1:]) >= least
        }
    indices = part.settings.get('indices')
    if isinstance(indices, int):
        return min(abs(indices), len(kept))
    if isinstance(indices, list | tuple):
        return len(indices)
    return len(kept)


def check_part(part: Part, report: Report) -> int | None:
    """Checks a data set; returns its number of images, if known."""
    file = read(part, report)
    if file is None:
        return None
    check_file(file, report)
    if part.split != 'test' and not file.has_annotations:
        _tell_no_annotations(file, part.place, report)
        return len(file.images)
    check_classes(part, file, report)
    check_objects(part, file, report)
    number = number_of_images(part, file)
    if not file.images:
        report.error(f'A data set needs images; {file.path} lists none.')
    elif not number:
        report.error(
            f'{part.place} keeps none of the {len(file.images)} images of '
            f'{file.path}: filter_cfg={dict(part.settings["filter_cfg"])} '
            f'leaves out those without objects of its classes or too small; '
            f'check classes, category_id and image_id.'
            if part.settings.get('filter_cfg')
            else f'{part.place}.indices leaves no image of {file.path}.'
        )
    if part.split != 'test' and number:
        ids = chosen(part, file)
        if not any(
            file.images_of.get(i, set()) & set(file.images) for i in ids
        ):
            tell = report.error if part.split == 'train' else report.warn
            tell(
                f'No annotation of {file.path} belongs to one of its images '
                f'and to a class of {part.place}, so there is nothing to '
                f'{"learn" if part.split == "train" else "find"}; check '
                f'image_id and category_id.'
            )
        elif not any(file.objects_of[i] for i in ids):
            tell = report.error if part.split == 'train' else report.warn
            tell(
                f'Some objects must count; all of {file.path} that belong to '
                f'a class of {part.place} are crowds (iscrowd=1), ignored, '
                f'without area or outside of their picture, so there is '
                f'nothing to {"learn" if part.split == "train" else "find"}.'
            )
    check_coco_pictures(part, file, report)
    return number


def _tell_no_annotations(file: CocoFile, place: str, report: Report) -> None:
    report.error(
        f'{place} needs a file with a list "annotations"; {file.path} has '
        f'none.'
    )


def check_metrics(
    cfg: Config, split: str, parts: list[Part], report: Report
) -> None:
    """Checks that COCO metrics read files with the data set's images."""
    files = [read(part, report) for part in parts if part.kind == 'coco']
    for i, metric in enumerate(metrics_of(cfg, split)):
        name = metric.get('ann_file')
        if name_of(metric.get('type')) != 'CocoMetric':
            continue
        if not isinstance(name, str) or metric.get('backend_args'):
            continue
        if '://' in name or not Path(name).is_file():
            continue
        place = f'{split}_evaluator' + f'.{i}' * (i > 0)
        file = _readable(Path(name), f'{place}.ann_file', report)
        if file is None:
            continue
        check_file(file, report)
        if not metric.get('format_only'):
            if not file.has_annotations:
                _tell_no_annotations(file, f'{place}.ann_file', report)
            _check_evaluable(metric, file, place, parts, report)
        if len(files) == 1 and files[0] is not None:
            other = set(files[0].images) - set(file.images)
            if other:
                report.error(
                    f'{place}.ann_file must hold the images of '
                    f'{parts[0].place}.ann_file; {file.path} lacks '
                    f'{len(other)} of {files[0].path}, such as id '
                    f'{min(other, key=str)}.'
                )


def _check_evaluable(
    metric: Any,
    file: CocoFile,
    place: str,
    parts: list[Part],
    report: Report,
) -> None:
    names = next((p.classes for p in parts if p.classes), None)
    ids = {i for i, name in file.categories if not names or name in names}
    kinds = metric.get('metric', 'bbox')
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    rules = _ALWAYS | _CROWD
    if 'segm' in kinds:
        rules = rules | _MASKS | _POLYGONS | _FIRST
    _broken_rules(file, rules, ids, place, report.error, report)


def check_order(parts: list[Part], report: Report) -> None:
    """Checks that all files give the same numbers to the classes."""
    first: tuple[Part, list] | None = None
    for part in parts:
        file = read(part, report)
        if file is None or part.classes is None:
            continue
        names = [name for _, name in file.categories if name in part.classes]
        if first is None:
            first = part, names
        elif names != first[1] and sorted(map(str, names)) == sorted(
            map(str, first[1])
        ):
            report.error(
                f'Classes are numbered in the order of the categories of a '
                f'file, which must be the same in all; {part.annotations} '
                f'has {listed(names)}, {first[0].annotations} has '
                f'{listed(first[1])}.'
            )
