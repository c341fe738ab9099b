# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares polygons with the boxes of their objects.

Polygons in parts of the picture, as YOLO writes them, or with y before x are
masks of nothing or of something else, and a model trains on them in silence.
"""

from pathlib import Path
from typing import Any

from ...utils.json_stream import JSONStream
from .parts import Part
from .report import Report, counted

# Number of objects to compare, the first of the file.
_MOST = 500
# Overlap (IoU) of a box with the box around the polygons, below which they
# are of different places.
_LEAST = 0.1


class _Enough(Exception):
    """Ends the reading of a file."""


def _objects(path: Path) -> list[dict[str, Any]]:
    """Returns the first objects with polygons."""
    found: list[dict[str, Any]] = []

    def look(entry: Any) -> None:
        if isinstance(entry, dict) and isinstance(
            entry.get('segmentation'), list
        ):
            found.append(entry)
            if len(found) == _MOST:
                raise _Enough

    def skip(_: Any) -> None:
        """Drops an entry, so that its list takes no memory."""

    try:
        entries = dict(annotations=look, images=skip, categories=skip)
        JSONStream(path, entries)
    except _Enough:
        pass
    return found


def _is_elsewhere(entry: dict[str, Any]) -> bool | None:
    """Returns whether polygons miss their box; None if that is unknown."""
    try:
        x, y, width, height = entry['bbox']
        points = [n for polygon in entry['segmentation'] for n in polygon]
        xs, ys = points[::2], points[1::2]
        left, right = min(xs), max(xs)
        top, bottom = min(ys), max(ys)
        both = max(min(right, x + width) - max(left, x), 0)
        both *= max(min(bottom, y + height) - max(top, y), 0)
        any_ = width * height + (right - left) * (bottom - top) - both
        return both < _LEAST * any_ if any_ > 0 else None
    except (KeyError, TypeError, ValueError):
        return None  # the rules for entries cover these


def check_outlines(part: Part, path: Path, report: Report) -> None:
    """Reports a file whose polygons are mostly outside of their boxes.

    Args:
        part: The data set.
        path: Its file, in COCO's format and without damage.
        report: Receives the problem.
    """
    looked = [
        (entry, apart)
        for entry in _objects(path)
        if (apart := _is_elsewhere(entry)) is not None
    ]
    wrong = [entry for entry, apart in looked if apart]
    if wrong and 2 * len(wrong) > len(looked):
        first = wrong[0]
        report.error(
            f'Polygons must be in pixels, [[x, y, x, y, ...]], where the box '
            f'of their object is; {part.place}: annotation {first.get("id")} '
            f'of {path} has the box {first["bbox"]} and its polygon begins '
            f'with {first["segmentation"][0][:4]} ({len(wrong)} of the first '
            f'{counted(len(looked), "object")} are like this), so correct '
            f'the polygons or the boxes.'
        )
