# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks label maps against the classes, as mmseg reads them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .class_names import check_names
from .parts import Part
from .pictures import (
    header,
    is_unreadable,
    loaded_size,
    spread,
    tell_damaged,
    turns,
)
from .report import Report, counted, listed

# Number of label maps to read if there are more, evenly spread.
MOST = 300


def check_part(part: Part, report: Report) -> int | None:
    """Checks a data set; returns its number of pictures, if known."""
    _check_settings(part, report)
    folder = part.prefix('img_path', 'img')
    if folder is None or not part.is_local or not folder.is_dir():
        return None
    names = _names(part, folder)
    if names is None:
        return None
    if not names:
        report.error(_nothing_found(part, folder))
        return 0
    maps = part.prefix('seg_map_path')
    loaders = part.transforms('LoadAnnotations')
    if loaders and maps is None:
        report.error(
            f'{part.place}.data_prefix needs the folder of the label maps, '
            f'seg_map_path, because its pipeline loads annotations.'
        )
    elif loaders and maps.is_dir():
        _check_maps(part, folder, maps, names, report)
    return len(names)


def _names(part: Part, folder: Path) -> list[str] | None:
    """Returns names without suffix, as mmseg lists them."""
    suffix = part.option('img_suffix', '.jpg')
    listing = part.annotations
    if listing is not None and listing.is_file():
        try:
            lines = listing.read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError):
            return None
        return [line.strip() for line in lines]
    if listing is not None and not listing.is_dir():
        return None
    if not isinstance(suffix, str):
        return None
    return sorted(
        str(path.relative_to(folder))[: -len(suffix)]
        for path in folder.rglob('*')
        if path.name.endswith(suffix)
        and not path.name.startswith('.')
        and path.is_file()
    )


def _nothing_found(part: Part, folder: Path) -> str:
    suffix = part.option('img_suffix', '.jpg')
    others = {p.suffix for p in list(folder.rglob('*'))[:1000] if p.suffix}
    there = ''
    if others:
        there = f'; the files there end in {listed(sorted(others))}'
    listing = part.annotations
    if listing is not None and listing.is_file():
        return f'A data set needs at least one picture; {listing} names none.'
    return (
        f'A data set needs at least one picture; {part.place} finds none in '
        f'{folder} whose name ends in img_suffix={suffix!r}{there}.'
    )


def _check_settings(part: Part, report: Report) -> None:
    """Checks the settings, without reading files."""
    reduced = part.option('reduce_zero_label', False)
    for loader in part.transforms('LoadAnnotations'):
        other = loader.get('reduce_zero_label')
        if other is not None and bool(other) != bool(reduced):
            report.error(
                f'reduce_zero_label must be the same for a data set and for '
                f'LoadAnnotations in its pipeline; {part.place} has '
                f'{reduced} and its pipeline has {other}, so give '
                f'both the same value.'
            )
    metainfo = part.settings.get('metainfo') or {}
    given, known = metainfo.get('classes'), None
    if part.type is not None:
        known = getattr(part.type, 'METAINFO', {}).get('classes')
    if not check_names(part, report):
        return
    if given and known and not isinstance(given, str):
        new = [name for name in given if name not in known]
        if new:
            report.error(
                f'{part.settings["type"]} accepts only classes of its own; '
                f'{part.place}.metainfo.classes also names {listed(new)}, so '
                f"set type='BaseSegDataset' for your own classes."
            )
    palette = metainfo.get('palette')
    if given and palette and not known and len(palette) != len(given):
        report.error(
            f'{part.place}.metainfo needs one colour for each class; its '
            f'palette has {len(palette)} colours, and its classes are '
            f'{len(given)}, so correct the palette.'
        )


def _label_map(part: Part) -> dict[int, int]:
    """Maps old to new labels, if the config selects some classes."""
    known = getattr(part.type, 'METAINFO', {}).get('classes')
    classes = part.classes
    if not known or not classes or list(known) == list(classes):
        return {}
    return {
        i: classes.index(name) if name in classes else 255
        for i, name in enumerate(known)
    }


def _read(path: Path) -> NDArray[np.uint8] | str | None:
    """Reads a label map.

    Returns:
        The labels, the end of an error sentence if the file is no label map,
        or None if it is unreadable.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            values = np.asarray(image)
            mode = image.mode
    except Exception:  # decoders raise any exception
        return None
    if values.ndim != 2:
        return f'has {values.shape[-1]} channels ({mode})'
    if values.dtype != np.uint8 and values.size and values.max() > 255:
        return f'has the label {values.max()}, and mmseg reads 8 bits'
    return values.astype(np.uint8)


def _check_maps(
    part: Part, pictures: Path, maps: Path, names: list[str], report: Report
) -> None:
    image_suffix = part.option('img_suffix', '.jpg')
    suffix = part.option('seg_map_suffix', '.png')
    loader = part.transforms('LoadAnnotations')[0]
    if loader.get('imdecode_backend', 'pillow') != 'pillow':
        return
    ignored = part.option('ignore_index', 255)
    reduced = part.option('reduce_zero_label', False)
    table, classes = _label_map(part), part.classes
    turned = turns(part)
    looked = spread(names, MOST)
    missing, odd, sizes, outside, blank = [], [], [], [], 0
    damaged: list[Path] = []
    seen: set[int] = set()
    held: set[int] = set()
    for name in looked:
        path = maps / f'{name}{suffix}'
        if not path.is_file():
            missing.append(path)
            continue
        values = _read(path)
        if values is None:
            odd.append((path, 'cannot be read'))
            continue
        if isinstance(values, str):
            odd.append((path, values))
            continue
        file = pictures / f'{name}{image_suffix}'
        picture = header(file)
        if picture is None and file.is_file() and is_unreadable(file):
            damaged.append(file)
        if picture is not None:
            size = loaded_size(picture, turned)
            if size != values.shape[::-1]:
                sizes.append((path, values.shape[::-1], size))
        raw = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        seen.update(raw.tolist())
        labels = {_loaded(int(v), reduced, table): int(v) for v in raw}
        labels.pop(ignored, None)
        blank += not labels
        held.update(labels)
        wrong = [
            v for label, v in labels.items() if label >= len(classes or ())
        ]
        if classes and wrong:
            outside.append((path, max(wrong)))
    _tell_files(part, missing, odd, sizes, len(looked), report)
    if damaged:
        tell_damaged(part, damaged, len(looked), report)
    if outside:
        report.error(_outside(part, outside, seen, len(looked)))
    elif reduced and _is_shifted(part, seen):
        all_seen = len(looked) == len(names)
        report.warn(_shifted_sentence(part, all_seen))
    elif held and part.split == 'train':
        _look_at_classes(part, held, len(looked), len(names), report)
    if looked and blank == len(looked):
        report.error(
            f'Label maps need labels that are not ignored; the '
            f'{counted(blank, "map")} of {maps} that were checked contain '
            f'only {listed(sorted(seen))}, and all of it is ignored '
            f'(ignore_index={ignored}, reduce_zero_label={reduced}), so '
            f'correct these settings or the maps.'
        )


def _look_at_classes(
    part: Part, held: set[int], looked: int, maps: int, report: Report
) -> None:
    """Warns of classes that no label map has, if that is certain or odd."""
    lacking = [
        name for i, name in enumerate(part.classes or ()) if i not in held
    ]
    if lacking and (looked == maps or len(held) == 1):
        report.warn(
            f'{part.place} has {counted(len(lacking), "class", "classes")} '
            f'that no label map has ({listed(lacking)}; {looked} of {maps} '
            f'maps were checked), so the model cannot learn '
            f'{"it" if len(lacking) == 1 else "them"}.'
        )


def _loaded(value: int, reduced: bool, table: dict[int, int]) -> int:
    """Returns the label that mmseg loads for a value of a file."""
    if reduced:
        value = 255 if value in (0, 255) else value - 1
    return table.get(value, value)


def _tell_files(
    part: Part,
    missing: list[Path],
    odd: list[tuple[Path, str]],
    sizes: list[Any],
    looked: int,
    report: Report,
) -> None:
    if missing:
        report.error(
            f'Every picture of {part.place} needs a label map; {missing[0]} '
            f'does not exist ({len(missing)} of {looked} maps are missing); '
            f'check seg_map_suffix and data_prefix.seg_map_path.'
        )
    if odd:
        report.error(
            f'A label map must have one channel with the labels, whole '
            f'numbers below 256; {odd[0][0]} {odd[0][1]} ({len(odd)} of '
            f'{looked} maps have this fault), so convert it.'
        )
    if sizes:
        path, size, wanted = sizes[0]
        report.error(
            f'A label map must have the size of its picture as loaded; {path} '
            f'is {size[0]}x{size[1]} and its picture {wanted[0]}x{wanted[1]} '
            f'({len(sizes)} of {looked} maps have this fault), so resize or '
            f'turn the map.'
        )


def _outside(
    part: Part, outside: list[tuple[Path, int]], seen: set[int], looked: int
) -> str:
    path, value = outside[0]
    classes = part.classes or ()
    reduced = part.option('reduce_zero_label', False)
    ignored = part.option('ignore_index', 255)
    if reduced and ignored != 255:
        ignored += 1  # as the file has it
    first = 1 if reduced else 0
    advice = f'change it to the label of a class or to {ignored}'
    last = max(v for v in seen if v != ignored)
    if not reduced and last == len(classes):
        advice = (
            'if 0 is the background, set reduce_zero_label=True, else add the '
            'missing class'
        )
    return (
        f'Labels must be {first} to {first + len(classes) - 1}, for the '
        f'{counted(len(classes), "class", "classes")} of {part.place} '
        f'(reduce_zero_label={reduced}), or {ignored} for ignored; {path} has '
        f'{value} ({len(outside)} of {looked} maps have this fault), so '
        f'{advice}.'
    )


def _is_shifted(part: Part, seen: set[int]) -> bool:
    """Returns whether reduce_zero_label probably ignores the first class."""
    number = len(part.classes or ())
    return number > 0 and set(range(number)) <= seen and number not in seen


def _shifted_sentence(part: Part, all_seen: bool) -> str:
    number = len(part.classes or ())
    return (
        f'{part.place} has reduce_zero_label=True, so 0 is ignored and the '
        f'classes are 1 to {number}; its label maps'
        f'{"" if all_seen else " that were checked"} contain 0 to '
        f'{number - 1} and no {number}, so if 0 is the class '
        f'{part.classes[0]!r}, set reduce_zero_label=False.'
    )
