# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reads an annotation file in COCO's format once and summarises it."""

from collections import defaultdict
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

from ...utils.json_stream import DamagedJSON, JSONStream, check_encoding

# Number of compressed masks to check, because Python decodes them slowly.
_MOST_MASKS = 2000
_HUGE = 1e9


class Flaws:
    """Counts violations of rules, by category, with a first example."""

    def __init__(self) -> None:
        self.where: dict[str, dict[Any, tuple[int, str]]] = defaultdict(dict)

    def add(self, rule: str, example: str, category: Any = None) -> None:
        """Counts a violation of `rule`; keeps the first `example`."""
        cases = self.where[rule]
        count, first = cases.get(category, (0, example))
        cases[category] = count + 1, first

    def of(self, rule: str, categories: set | None = None) -> tuple[int, str]:
        """Returns the number of violations and the first example."""
        found = [
            case
            for category, case in self.where.get(rule, {}).items()
            if categories is None or category in categories
        ]
        return sum(n for n, _ in found), found[0][1] if found else ''


class CocoFile:
    """A summary of a file of annotations.

    Attributes:
        problem: Why the file cannot be read, or None.
        images: ``(file_name, width, height)`` by id; None for a missing
            value.
        categories: ``(id, name)`` in the order of the file.
        images_of: Ids of the images with objects of a category, by its id.
        objects_of: Number of the objects of a category that a detector
            learns: no crowds, and none without area or outside of the picture.
        has_annotations: Whether there is a list of annotations.
        flaws: Entries that violate a rule.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self.images: dict[Any, tuple[Any, Any, Any]] = {}
        self.categories: list[tuple[Any, Any]] = []
        self.images_of: dict[Any, set] = defaultdict(set)
        self.objects_of: dict[Any, int] = defaultdict(int)
        self.annotations = 0
        self.has_annotations = False
        self.flaws = Flaws()
        self._ids: set = set()
        self._masks = 0
        self._read()
        self._ids.clear()

    def _read(self) -> None:
        self.problem = check_encoding(self.path)
        if self.problem is not None:
            return
        entries = dict(
            images=self._image,
            annotations=self._annotation,
            categories=self._category,
        )
        try:
            keys = JSONStream(self.path, entries, ('annotations',)).keys
        except (DamagedJSON, UnicodeDecodeError) as error:
            self.problem = (
                'is not written in UTF-8'
                if isinstance(error, UnicodeDecodeError)
                else str(error)
            )
            return
        except RecursionError:
            self.problem = 'has too many lists inside lists'
            return
        for key in ('images', 'categories'):
            if keys.get(key, 0) is not None:
                what = 'no' if key not in keys else 'no list of'
                self.problem = (
                    f'has {what} {key!r}, and COCO\'s format needs "images", '
                    f'"annotations" and "categories"'
                )
                return
        self.has_annotations = keys.get('annotations', 0) is None

    def _image(self, image: Any) -> None:
        add = self.flaws.add
        if not isinstance(image, dict):
            return add('image', f'{image!r:.60}')
        ident = image.get('id')
        if ident is None or isinstance(ident, dict | list):
            return add('image id', f'{image.get("file_name")!r:.60}')
        if ident in self.images:
            add('twice: image', f'{ident}')
        name, sides = image.get('file_name'), []
        if not isinstance(name, str):
            add('file_name', f'{ident}')
        for side in ('width', 'height'):
            value = image.get(side)
            if type(value) not in (int, float) or value <= 0:
                add(side, f'{ident}')
                value = None
            sides.append(value)
        self.images[ident] = (name, *sides)
        return None

    def _category(self, category: Any) -> None:
        ident = name = None
        if isinstance(category, dict):
            ident, name = category.get('id'), category.get('name')
        if isinstance(ident, dict | list) or ident is None or name is None:
            return self.flaws.add('category', f'{category!r:.60}')
        if any(ident == other for other, _ in self.categories):
            self.flaws.add('twice: category', f'{ident}')
        if any(name == other for _, other in self.categories):
            self.flaws.add('twice: category name', f'{name!r}')
        self.categories.append((ident, name))
        return None

    def _annotation(self, entry: Any) -> None:
        self.annotations += 1
        if not self._is_usual(entry):
            self._look_at(entry)

    def _is_usual(self, entry: Any) -> bool:
        """Adds an annotation quickly if it has no flaw; returns whether."""
        try:
            ident, image = entry['id'], entry['image_id']
            category = entry['category_id']
            x, y, width, height = entry['bbox']
            outlines = entry['segmentation']
            (polygon,) = outlines
            _, right, bottom = self.images[image]
            if (
                entry['area'] > 0
                and 1 <= width < _HUGE
                and 1 <= height < _HUGE
                and -1 <= x < right
                and -1 <= y < bottom
                and x + width <= right + 1
                and y + height <= bottom + 1
                and type(outlines) is list
                and type(polygon) is str  # a list that was shortened
                and int(polygon) % 2 == 0
                and ident not in self._ids
                and None not in (ident, category)
                and entry['iscrowd'] == 0
                and 'ignore' not in entry
            ):
                self.images_of[category].add(image)
                self.objects_of[category] += 1
                self._ids.add(ident)
                return True
        except (KeyError, TypeError, ValueError):
            pass
        return False

    def _look_at(self, entry: Any) -> None:
        """Adds an annotation and records its flaws."""
        add = self.flaws.add
        if type(entry) is not dict:
            return add('annotation', f'{entry!r:.60}')
        get = entry.get
        ident, image, category = get('id'), get('image_id'), get('category_id')
        try:
            if ident is None:
                add('annotation id', f'{self.annotations - 1}')
            elif ident in self._ids:
                add('twice: annotation', f'{ident}')
            self._ids.add(ident)
            self.images_of[category].add(image)
        except TypeError:  # a list or dict
            return add('annotation', f'{entry!r:.60}')
        if image is None or category is None:
            key = 'image_id' if image is None else 'category_id'
            return add(key, f'{ident}')
        if 'iscrowd' not in entry:
            add('iscrowd', f'{ident} (image {image})', category)
        elif entry['iscrowd'] not in (0, 1):
            add('iscrowd value', f'{ident} (image {image})', category)
        if get('ignore'):
            return None
        box, area = get('bbox'), get('area')
        if type(box) is not list or len(box) != 4:
            # A shortened list of numbers has six or more.
            what = 'no bbox' if 'bbox' not in entry or not box else 'a bbox'
            rule = 'bbox' if what == 'no bbox' else 'bbox length'
            return add(rule, f'{ident} (image {image})', category)
        try:
            x, y, width, height = box
            good = width >= 1 and height >= 1 and area > 0
            good = good and isfinite(x + y + width + height)
        except TypeError:
            rule = 'area' if area is None else 'area value'
            if type(area) in (int, float):
                rule = 'bbox length'
            return add(rule, f'{ident} (image {image})', category)
        size = self.images.get(image)
        if good and size is not None and size[1] and size[2]:
            good = x < size[1] and y < size[2] and x + width > 0 < y + height
        if not good:
            return add('no area', f'{ident} (image {image}): {box}', category)
        self.objects_of[category] += not get('iscrowd')
        if size is not None and size[1] and size[2]:
            inside = min(x, y) >= -1 and x + width <= size[1] + 1
            if not (inside and y + height <= size[2] + 1):
                where = f'{ident} (image {image} of {size[1]} x {size[2]})'
                add('beyond', f'{where}: {box}', category)
        fault = self._mask_fault(get('segmentation'), size)
        if fault is not None:
            add(fault, f'{ident} (image {image})', category)
        return None

    def _mask_fault(self, mask: Any, size: Any) -> str | None:
        """Returns the rule that a segmentation violates, or None."""
        if not mask:
            return 'segmentation'
        if isinstance(mask, dict):
            return self._runs_fault(mask, size)
        if not isinstance(mask, list):
            return 'flat'  # as a list of numbers, shortened, is not nested
        lengths = []
        for part in mask:
            if isinstance(part, str) and part.isdigit():
                lengths.append(int(part))
            elif isinstance(part, list):
                if not all(type(n) in (int, float) for n in part):
                    return 'flat'
                lengths.append(len(part))
            else:
                return 'flat'
        good = [n >= 6 and n % 2 == 0 for n in lengths]
        if not any(good):
            return 'polygon'
        if all(good):
            return None
        # If the first has four numbers, pycocotools reads all as boxes.
        return 'first polygon' if lengths[0] == 4 else 'part of polygon'

    def _runs_fault(self, mask: dict, size: Any) -> str | None:
        counts, sides = mask.get('counts'), mask.get('size')
        sound = type(sides) is list and len(sides) == 2
        if not sound or not all(type(side) is int for side in sides):
            return 'runs'
        if size is not None and size[1] and [size[2], size[1]] != sides:
            return 'runs size'
        if isinstance(counts, str):
            self._masks += 1
            total = sides[0] * sides[1]
            if self._masks <= _MOST_MASKS:
                total = _sum_of_runs(counts)
        elif isinstance(counts, list):
            if not all(type(n) is int and n >= 0 for n in counts):
                return 'runs'
            total = sum(counts)
        else:
            return 'runs'
        return None if total == sides[0] * sides[1] else 'runs'


def _sum_of_runs(text: str) -> int:
    """Returns the pixels of a compressed mask, -1 if it is invalid.

    A run is a number in pieces of 5 bits, the lowest first, each with a bit
    that says whether another piece follows. From the third run on, the number
    is the difference from the run two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode('utf-8'):
        code -= 48
        if not 0 <= code < 64:
            return -1
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return -1
        runs.append(value)
        value = shift = 0
    return -1 if shift else sum(runs)


@lru_cache(maxsize=8)
def _read(path: str, _: tuple) -> CocoFile:
    return CocoFile(Path(path))


def read_coco(path: Path) -> CocoFile:
    """Returns the summary of a file; reads it once for all splits."""
    stat = path.stat()
    state = (stat.st_mtime_ns, stat.st_size)
    return _read(str(path.resolve()), state)
