# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks COCO files against what mmdet and pycocotools read from them."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .class_names import check_names
from .coco_file import CocoFile, read_coco
from .coco_outlines import check_outlines
from .coco_rules import (
    ALWAYS,
    CROWD,
    FIRST,
    MASKS,
    PART,
    POLYGONS,
    check_file,
    check_rules,
)
from .coco_settings import check_settings
from .parts import Part, kinds_of, metrics_of, name_of
from .pictures import check_coco_pictures
from .report import Report, counted, listed

# From this share of boxes beyond their pictures on, all are taken for corners.
_MOST_BEYOND = 0.25


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
    advice = 'copy, download or export it again'
    if 'byte-order' in file.problem or 'UTF' in file.problem:
        advice = 'save it as UTF-8 without a byte-order mark'
    report.error(
        f"{place} must be a complete JSON file in COCO's format; {path} "
        f'{file.problem}, so {advice}.'
    )
    return None


def check_classes(part: Part, file: CocoFile, report: Report) -> None:
    """Compares the names of classes with the names of categories."""
    if not check_names(part, report):
        return
    classes = part.classes
    names = [name for _, name in file.categories]
    if not classes:
        return
    twice = [name for name in classes if classes.count(name) > 1]
    if twice:
        report.error(
            f'The names of classes must differ; {part.place}.metainfo.classes '
            f'has {twice[0]!r} twice, so rename or remove one.'
        )
    unknown = [name for name in classes if name not in names]
    unnamed = [name for name in names if name not in classes]
    if unknown:
        report.error(_unknown_sentence(part, file, unknown, names))
    elif unnamed:
        report.warn(
            f'{file.path} has '
            f'{counted(len(unnamed), "category", "categories")} that no class '
            f'of {part.place} names ({listed(unnamed)}), so mmdet leaves out '
            f'{"its" if len(unnamed) == 1 else "their"} objects; to detect '
            f'them, add the names to metainfo.classes.'
        )
    kept = [name for name in names if name in classes]
    if len(kept) == len(classes) and list(classes) != kept and not unknown:
        differ = ((a, b) for a, b in zip(classes, kept) if a != b)
        pair = next(differ, (classes[-1], kept[-1]))
        report.warn(
            f'mmdet numbers classes in the order of the categories of '
            f'{file.path}, and {part.place}.metainfo.classes has another '
            f'order ({pair[0]!r} where the file has {pair[1]!r}), so drawings '
            f'and predictions would show the wrong names; list the classes in '
            f'the order of the file.'
        )


def _unknown_sentence(
    part: Part, file: CocoFile, unknown: list[str], names: list[str]
) -> str:
    sentence = (
        f'Every class of a data set must be a category of its annotation '
        f'file; {file.path} has no category {listed(map(repr, unknown))}, '
        f'which {part.place} names as a class; '
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
        return f'{sentence}a similar name is {close[0]!r}, and {has}.'
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
    check_rules(file, ALWAYS, None, part.place, report.error)
    ids = chosen(part, file)
    loaders = part.transforms('LoadAnnotations')
    masked = any(loader.get('with_mask') for loader in loaders)
    if masked:
        check_rules(file, MASKS, ids, part.place, report.error)
        for rules, lost in (
            (POLYGONS, ' mmdet ignores the object.'),
            (PART | FIRST, ' mmdet leaves out this polygon.'),
        ):
            check_rules(file, rules, ids, part.place, report.warn, lost)
    number, first = file.flaws.of('no area', ids)
    if number:
        report.warn(
            f'{file.path} has {counted(number, "object")} without area or '
            f'outside the image, the first is annotation {first}; mmdet '
            f'leaves out such objects, so correct their boxes if they matter.'
        )
    _check_corners(file, ids, report)
    known = {ident for ident, _ in file.categories}
    lost = [c for c in file.images_of if c not in known and c is not None]
    if lost:
        report.warn(
            f'{file.path} has annotations of categories that it does not '
            f'list (category_id {listed(lost)}); mmdet leaves them out, so '
            f'add the categories or correct category_id.'
        )
    strangers = set().union(*file.images_of.values()) - set(file.images)
    if strangers:
        report.warn(
            f'{file.path} has annotations of '
            f'{counted(len(strangers), "image")} that it does not list '
            f'(image_id {listed(sorted(strangers, key=str), 3)}); mmdet '
            f'leaves them out, so add the images or correct image_id.'
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
    if not file.has_annotations and part.split != 'test':
        # Pictures without labels are for semi-supervised training.
        if part.split == 'val' or part.transforms('LoadAnnotations'):
            _tell_no_annotations(file, part.place, report)
        return len(file.images)
    check_classes(part, file, report)
    check_objects(part, file, report)
    number = number_of_images(part, file)
    check_settings(part, len(file.images), report)
    if not file.images:
        report.error(
            f'A data set needs at least one image; {file.path} lists none, so '
            f'check {part.place}.ann_file.'
        )
    elif not number:
        report.error(
            f'A data set needs at least one image; {part.place} keeps none of '
            f'the {len(file.images)} images of {file.path}, because '
            f'filter_cfg={dict(part.settings["filter_cfg"])} leaves out '
            f'images that are too small or have no object of its classes; '
            f'check classes, category_id and image_id.'
            if part.settings.get('filter_cfg')
            else f'A data set needs at least one image; {part.place}.indices '
            f'selects none of {file.path}.'
        )
    if part.split != 'test' and number:
        ids = chosen(part, file)
        tell = report.error if part.split == 'train' else report.warn
        if not any(
            file.images_of.get(i, set()) & set(file.images) for i in ids
        ):
            tell(
                f'No annotation of {file.path} belongs to one of its images '
                f'and to a class of {part.place}, so there is nothing to '
                f'{"learn" if part.split == "train" else "detect"}; check '
                f'image_id and category_id.'
            )
        elif any(file.objects_of[i] for i in ids):
            _look_at_classes(part, file, report)
        else:
            tell(
                f'Some objects must count; all of {file.path} that belong to '
                f'a class of {part.place} are crowds (iscrowd=1), ignored, '
                f'without area or outside of their picture, so there is '
                f'nothing to {"learn" if part.split == "train" else "find"}.'
            )
    check_coco_pictures(part, file, report)
    loaders = part.transforms('LoadAnnotations')
    if any(loader.get('with_mask') for loader in loaders) and not any(
        str(file.path) in error for error in report.errors
    ):  # what is wrong with the boxes is said better above
        check_outlines(part, file.path, report)
    return number


def _look_at_classes(part: Part, file: CocoFile, report: Report) -> None:
    """Warns of classes without objects to learn."""
    lacking = [
        name
        for ident, name in file.categories
        if ident in chosen(part, file) and not file.objects_of[ident]
    ]
    if lacking and part.split == 'train':
        report.warn(
            f'{file.path} has no object of '
            f'{counted(len(lacking), "class", "classes")} of {part.place} '
            f'({listed(lacking)}), so the model cannot learn '
            f'{"it" if len(lacking) == 1 else "them"}.'
        )


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
                    f'{place}.ann_file must list the images of '
                    f'{parts[0].place}.ann_file; {file.path} lacks '
                    f'{len(other)} of {files[0].path}, such as id '
                    f'{min(other, key=str)}, so set both to the same file.'
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
    rules = ALWAYS | CROWD
    if 'segm' in kinds_of(metric, 'metric', 'bbox'):
        rules = rules | MASKS | POLYGONS | FIRST
    check_rules(file, rules, ids, place, report.error)


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
                f'mmdet numbers classes in the order of the categories of a '
                f'file, so all files need the same order; {part.annotations} '
                f'has {listed(names)}, and {first[0].annotations} has '
                f'{listed(first[1])}; sort the categories of one file as in '
                f'the other.'
            )
