# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks the sizes of pictures, read from their headers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .coco_file import CocoFile
from .parts import Part
from .report import Report, counted

# Number of pictures to read if there are more, evenly spread.
MOST = 4000

_ORIENTATION = 0x0112  # the tag of EXIF
_SIDEWAYS = (5, 6, 7, 8)


class Header(NamedTuple):
    """Size and orientation in the header of a picture.

    Attributes:
        size: Width and height in pixels, as stored.
        orientation: EXIF orientation, 1 for none.
    """

    size: tuple[int, int]
    orientation: int


def spread(items: Sequence, most: int = MOST) -> Sequence:
    """Returns at most `most` items, evenly spread, with first and last."""
    if len(items) <= most:
        return items
    step = (len(items) - 1) / (most - 1)
    return [items[round(i * step)] for i in range(most)]


def header(path: Path) -> Header | None:
    """Reads size and orientation of a picture; None if that fails."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            turned = 1
            if 'exif' in image.info or image.format in ('TIFF', 'MPO'):
                turned = image.getexif().get(_ORIENTATION, 1)
            return Header(image.size, turned)
    except Exception:  # decoders raise any exception
        return None


def is_unreadable(path: Path) -> bool:
    """Returns whether OpenCV cannot read a file that Pillow cannot."""
    import cv2

    try:
        return path.stat().st_size == 0 or cv2.imread(str(path)) is None
    except Exception:  # whatever a decoder raises
        return True


def tell_damaged(
    part: Part, damaged: list[Path], looked: int, report: Report
) -> None:
    """Reports files that are no pictures."""
    path = damaged[0]
    empty = 'is empty' if path.stat().st_size == 0 else 'is no picture'
    report.error(
        f'Every picture of {part.place} must be readable; {path.absolute()} '
        f'{empty} ({len(damaged)} of {looked} pictures have this fault), so '
        f'copy it again or remove it from the annotations.'
    )


def turns(part: Part) -> bool:
    """Returns whether the data set applies the EXIF orientation."""
    loaders = part.transforms('LoadImageFromFile')
    if not loaders:
        return False
    first = loaders[0]
    if first.get('imdecode_backend', 'cv2') not in ('cv2', 'pillow', None):
        return False
    return first.get('color_type', 'color') in ('color', 'grayscale')


def loaded_size(found: Header, turned: bool) -> tuple[int, int]:
    """Returns width and height after the EXIF rotation."""
    width, height = found.size
    if turned and found.orientation in _SIDEWAYS:
        return height, width
    return width, height


def check_coco_pictures(part: Part, file: CocoFile, report: Report) -> None:
    """Checks that pictures exist and have the size in the file."""
    folder = part.prefix('img', 'img_path')
    loaders = part.transforms('LoadImageFromFile')
    if folder is None or not loaders or not part.is_local:
        return
    if '://' in str(folder) or loaders[0].get('backend_args'):
        return
    images = [
        (ident, *image)
        for ident, image in file.images.items()
        if isinstance(image[0], str)
    ]
    missing: list[tuple[Any, Path]] = []
    wrong: list[str] = []
    mirrored: list[Path] = []
    damaged: list[Path] = []
    turned = turns(part)
    for ident, name, width, height in spread(images):
        path = folder / name
        found = header(path)
        if found is None:
            if not path.is_file():
                missing.append((ident, path))
            elif is_unreadable(path):
                damaged.append(path)
            continue  # loading names a truncated picture later
        size = loaded_size(found, turned)
        if width and height and size != (width, height):
            wrong.append(_wrong_size(ident, path, found, size, width, height))
        elif turned and found.orientation in (2, 3, 4):
            mirrored.append(path)
    looked = min(len(images), MOST)
    if missing:
        ident, path = missing[0]
        report.error(
            f'Every image of {part.place} needs its picture; that of image '
            f'{ident} of {file.path}, {path.absolute()}, does not exist '
            f'({len(missing)} of {looked} pictures are missing); check '
            f'data_prefix and file_name.'
        )
    if damaged:
        tell_damaged(part, damaged, looked, report)
    if wrong:
        report.error(
            f'{wrong[0]} ({len(wrong)} of {looked} pictures have this fault.)'
        )
    if mirrored:
        report.warn(
            f'EXIF data turn or mirror {counted(len(mirrored), "picture")} of '
            f'{part.place} and not the boxes, the first is {mirrored[0]}; if '
            f'the boxes are for the pictures as stored, add '
            f"color_type='color_ignore_orientation' to LoadImageFromFile."
        )


def _wrong_size(
    ident: Any,
    path: Path,
    found: Header,
    size: tuple[int, int],
    width: Any,
    height: Any,
) -> str:
    sentence = (
        f'A picture must be loaded in the size that its annotations are for; '
        f'image {ident}, {path}, is {width}x{height} in the annotations and '
        f'{size[0]}x{size[1]} as loaded'
    )
    if found.size == (width, height):
        return (
            f'{sentence}, because its EXIF data turn it (orientation '
            f"{found.orientation}); add color_type='color_ignore_orientation' "
            f'to LoadImageFromFile, or turn the picture or the boxes.'
        )
    return (
        f'{sentence}; correct its width and height in the file, and check its '
        f'boxes.'
    )
