# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks folders of classes and lists of labels, as mmpretrain reads them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .parts import Part
from .report import Report, counted, listed

# Counting stops at this number of pictures; the checks need no more.
_ENOUGH = 20_000


def listing_of(part: Part) -> Path | None:
    """Returns the file of names and labels, also the default of ImageNet."""
    if part.annotations is not None:
        return part.annotations
    split = part.settings.get('split')
    if split and part.type is not None and 'ImageNet' in part.type.__name__:
        path = part.path(f'meta/{split}.txt')
        return path if path.is_file() else None
    return None


def folder_of(part: Part) -> Path | None:
    """Returns the folder of the pictures."""
    prefix = part.settings.get('data_prefix', '')
    if isinstance(prefix, Mapping):
        prefix = prefix.get('img_path', '')
    split = part.settings.get('split')
    known = part.type is not None and 'ImageNet' in part.type.__name__
    if not prefix and split and known:
        prefix = split
    if not isinstance(prefix, str):
        return None
    return part.path(os.path.expanduser(prefix))


def folders(part: Part) -> list[str] | None:
    """Returns the names of the class folders, None without a folder."""
    if listing_of(part) is not None or not part.option('with_label', True):
        return None
    root = folder_of(part)
    if root is None or not root.is_dir() or not part.is_local:
        return None
    return sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir()  # hidden ones too, as mmpretrain counts them
    )


def number_of_classes(part: Part) -> int | None:
    """Returns the number of classes, from names or folders, if known."""
    if part.classes is not None:
        return len(part.classes)
    found = folders(part)
    return len(found) if found is not None else None


def check_part(part: Part, report: Report, most: int | None) -> int | None:
    """Checks a data set; returns its number of pictures, if known.

    Args:
        part: The data set.
        report: Receives the problems.
        most: Number of classes of the head, if known.
    """
    if not part.is_local:
        return None
    listing = listing_of(part)
    if listing is not None:
        return _check_listing(part, listing, report, most)
    found = folders(part)
    if found is None:
        return None
    root = folder_of(part)
    if not found:
        report.error(
            f'{part.place} needs a folder for each class; {root} has no '
            f'folders, so check data_root and data_prefix.'
        )
        return 0
    if part.classes is not None and len(part.classes) != len(found):
        report.error(
            f'Each class needs a folder; {part.place} has '
            f'{counted(len(part.classes), "class", "classes")}'
            f'{_whose(part)} and {root} has '
            f'{counted(len(found), "folder")} ({listed(found)}), so '
            f'{_advice(part, len(found))}.'
        )
    return _count(part, root, found, report)


def _whose(part: Part) -> str:
    own = 'metainfo' in part.settings or 'classes' in part.settings
    return '' if own else f' (those of {part.type.__name__})'


def _advice(part: Part, number: int) -> str:
    own = 'metainfo' in part.settings or 'classes' in part.settings
    if own:
        return 'name a class for each folder'
    return (
        f"set type='CustomDataset' for your own data, and num_classes={number}"
        f' in the head'
    )


def _count(
    part: Part, root: Path, found: list[str], report: Report
) -> int | None:
    """Counts pictures, and reports folders without pictures."""
    endings = tuple(
        str(ending).lower()
        for ending in part.option(
            'extensions',
            ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif'),
        )
    )
    total, empty = 0, []
    for name in found:
        number = 0
        for _, _, files in os.walk(root / name):
            number += sum(file.lower().endswith(endings) for file in files)
            if number and total > _ENOUGH:
                break
        total += number
        if not number:
            empty.append(name)
    if not total:
        report.error(
            f'A data set needs at least one picture; {part.place} finds no '
            f'file in the folders of {root} that ends in one of '
            f'{listed(endings, 9)}; check data_prefix and extensions.'
        )
    elif empty:
        report.warn(
            f'{root} has no pictures of {listed(empty)}, so the model never '
            f'learns {"this class" if len(empty) == 1 else "these classes"}; '
            f'add pictures or remove the empty folders.'
        )
    return total if total <= _ENOUGH else None


def _check_listing(
    part: Part, listing: Path, report: Report, most: int | None
) -> int | None:
    if not listing.is_file() or not part.option('with_label', True):
        return None
    try:
        lines = listing.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    classes = part.classes
    limit = most if classes is None else len(classes)
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.lstrip('-').isdigit():
            report.error(
                f'Every line of ann_file must be a picture and its label, '
                f'such as "cat/1.jpg 0"; line {number} of {listing} is '
                f'{line!r:.80}.'
            )
            break
        if limit is not None and not 0 <= int(label) < limit:
            what = 'head' if classes is None else 'data set'
            report.error(
                f'Labels must be 0 to {limit - 1}, for the {limit} classes '
                f'of the {what}; line {number} of {listing} is {line!r:.80}, '
                f'so correct the label or the number of classes.'
            )
            break
    if not lines:
        report.error(
            f'A data set needs at least one picture; {listing} names none.'
        )
    else:
        _check_there(part, lines, listing, report)
    return len(lines)


def _check_there(
    part: Part, lines: list[str], listing: Path, report: Report
) -> None:
    root = folder_of(part)
    if root is None:
        return
    name = lines[0].strip().rpartition(' ')[0]
    if name and not (root / name).is_file():
        report.error(
            f'The pictures in {listing} must be below '
            f'{part.place}.data_prefix; the first, {root / name}, does not '
            f'exist, so check data_root and data_prefix.'
        )


def check_same_folders(parts: list[Part], report: Report) -> None:
    """Checks that all splits have the same class folders.

    mmpretrain numbers the classes in the order of the folders.
    """
    first: tuple[Any, list[str]] | None = None
    for part in parts:
        found = folders(part)
        if not found:
            continue
        if first is None:
            first = folder_of(part), found
        elif found != first[1]:
            extra = sorted(set(found) - set(first[1]))
            lacking = sorted(set(first[1]) - set(found))
            what = ' and '.join(
                f'{word} {listed(names)}'
                for word, names in (('has', extra), ('lacks', lacking))
                if names
            )
            # With equally many folders, other names may be intended.
            tell = report.warn
            if len(found) != len(first[1]):
                tell = report.error
            tell(
                f'mmpretrain numbers classes in the order of their folders, '
                f'so all splits need the same folders; {folder_of(part)} '
                f'{what}, compared with {first[0]}.'
            )
