# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Warns of validation pictures that the model is trained on."""

from pathlib import Path
from typing import Any

from .classification import folder_of, listing_of
from .coco_file import read_coco
from .parts import Part
from .report import Report, counted


def check_leakage(parts: list[Part], report: Report) -> None:
    """Warns once if a training and a validation set share pictures.

    Args:
        parts: The data sets of the run.
        report: Receives the warning.
    """
    train = [part for part in parts if part.split == 'train' and part.is_local]
    val = [part for part in parts if part.split == 'val' and part.is_local]
    for one in train:
        for other in val:
            if one.kind is None or one.kind != other.kind:
                continue
            same = _folder(one)
            if same is None or same != _folder(other):
                continue
            if _lists(one) == _lists(other):
                report.warn(
                    f'{other.place} reads the same pictures as {one.place} '
                    f'({same}), so its results say nothing about other '
                    f'pictures.'
                )
                return
            shared = _shared(one, other)
            if shared:
                report.warn(
                    f'{other.place} has {counted(len(shared), "picture")} '
                    f'that {one.place} trains on, such as {min(shared)}, so '
                    f'its results look better than they are.'
                )
                return


def _folder(part: Part) -> Path | None:
    if part.kind == 'folders':
        return folder_of(part)
    return part.prefix('img', 'img_path')


def _lists(part: Part) -> tuple[Any, Any]:
    """Returns what selects the pictures of a folder."""
    listing = part.annotations
    if part.kind == 'folders':
        listing = listing_of(part)
    return listing, str(part.settings.get('indices'))


def _shared(one: Part, other: Part) -> set[str]:
    """Returns names of pictures that two COCO files list."""
    files = [part.annotations for part in (one, other)]
    if one.kind != 'coco' or any(f is None or not f.is_file() for f in files):
        return set()
    if one.settings.get('indices') or other.settings.get('indices'):
        return set()
    first, second = (
        {name for name, *_ in read_coco(path).images.values()}
        for path in files
    )
    return {name for name in first & second if isinstance(name, str)}
