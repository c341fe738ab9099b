# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Makes one HTML file from a picture, a config and checkpoints."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image
from torch import nn

from ...utils.errors import UserError
from ..findings import Findings, find
from ..picture import (
    INIT,
    Picture,
    load_model,
    load_picture,
    load_weights,
    record,
)
from ..recorder import BlockRecord, select_blocks
from .collect import Queries, choose_queries, collect_rows, encode_points
from .encode import Blob, Plan, Rows, plan_blocks

MEGABYTE = 1e6
LARGEST_SIDE = 1280  # of the picture in the page, in pixels
# First guess of the compression ratio; a page that is too large is cut later.
GUESS = 1.5
# Colour-blind safe colours of classes and objects (Okabe and Ito).
COLOURS = (
    '#e69f00',
    '#56b4e9',
    '#009e73',
    '#f0e442',
    '#0072b2',
    '#d55e00',
    '#cc79a7',
    '#ffffff',
)

Progress = Callable[[Iterable, str], Iterable]


@dataclass(frozen=True)
class Explorer:
    """An HTML page; notebooks show it as the result of a cell.

    Attributes:
        html: Text of the file.
        header: Description of its content, without the weights.
    """

    html: str
    header: dict[str, Any]

    def save(self, out: str | Path) -> Path:
        """Writes the page to a file."""
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(self.html, encoding='utf-8')
        return out

    def _repr_html_(self) -> str:
        return (
            '<iframe style="width: 100%; height: 760px; border: 0" '
            f'srcdoc="{escape(self.html)}"></iframe>'
        )


def explore(
    image: str | Path,
    config: str | Config,
    checkpoints: str | Path | Sequence[str | Path] | None = None,
    *,
    stage: int | None = None,
    block: int | None = None,
    score: float = 0.3,
    megabytes: float = 5.0,
    progress: Progress = lambda items, _: items,
) -> Explorer:
    """Makes a page that shows the attention of every query of a picture.

    Args:
        image: An image file.
        config: A detection, segmentation or classification config.
        checkpoints: One checkpoint, or several checkpoints of a training, in
            order; None for the file of ``init_cfg``, or random weights.
        stage: Number of the stage, from 0; None for all.
        block: Number of the block in the stage, from 0; None for all.
        score: Lowest score of an object to overlay.
        megabytes: Largest size of the page. If not everything fits, the page
            keeps the largest keys of each query and says so.
        progress: Wraps slow loops, with a label, to show progress.

    Raises:
        UserError: A file is missing or does not fit, the block does not exist,
            or `megabytes` is too small.
    """
    if checkpoints is None or isinstance(checkpoints, str | Path):
        checkpoints = [checkpoints] if checkpoints else []
    names = [str(one) for one in checkpoints]
    model = load_model(config, names[0] if names else None)
    picture = load_picture(model, image)
    blocks = select_blocks(model, stage, block)
    head = _head(image, picture, model)
    shown, room = _picture(picture.image), megabytes * MEGABYTE
    room -= len(shown['source']) + _assets_size()
    stages: list[_Stage] = []
    for name in progress(names or [None], 'Checkpoints'):
        if name is not None and stages:
            load_weights(model, name)
        records = record(model, picture, blocks)
        if not stages:
            chosen = _plan(records, room, len(names) or 1, megabytes)
            queries = {
                key: choose_queries(model, picture, one, chosen[key])
                for key, one in records.items()
            }
        whole = name is not None and model.weights.whole
        stages.append(
            _Stage(
                _label(name),
                list(records.values()),
                collect_rows(model, picture, queries, chosen),
                find(model, picture, score) if whole else Findings(),
            )
        )
    plans = list(chosen.values())
    head |= dict(
        picture=shown, blocks=_blocks(stages[0], queries.values(), plans)
    )
    for part in (1, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1):
        page = _write(head, stages, plans, part)
        if len(page.html.encode()) <= megabytes * MEGABYTE:
            return page
    raise _too_much(megabytes)


def _label(name: str | None) -> str:
    if name is None:
        return 'random weights'
    return 'before training' if name == INIT else Path(name).stem


@dataclass(frozen=True)
class _Stage:
    """Results of one checkpoint of a training."""

    name: str
    records: list[BlockRecord]
    rows: list[Rows]
    found: Findings


def _too_much(megabytes: float) -> UserError:
    return UserError(
        f'A page of {megabytes:g} MB has no room for so many blocks and '
        f'checkpoints; choose one --stage or --block, fewer checkpoints, or '
        f'more --megabytes.'
    )


def _plan(
    records: Mapping[tuple[int, int], BlockRecord],
    room: float,
    count: int,
    megabytes: float,
) -> dict[tuple[int, int], Plan]:
    plans = plan_blocks(
        [
            (
                one.map_size,
                one.heads,
                one.points_xy.shape[2] * one.points_xy.shape[3],
            )
            for one in records.values()
        ],
        0.75 * GUESS * room / count,  # base64 turns three bytes into four
    )
    if plans is None:
        raise _too_much(megabytes)
    return dict(zip(records, plans))


def _head(
    image: str | Path, picture: Picture, model: nn.Module
) -> dict[str, Any]:
    """Returns the description of the picture and the model."""
    crop = picture.frame.seen(picture.inputs.shape[2:])
    return dict(
        name=Path(image).name,
        config=Path(model.cfg.filename or 'config').stem,
        warning=model.weights.warning,
        crop=[round(value, 3) for value in crop],
    )


def _picture(image: np.ndarray) -> dict[str, Any]:
    """Encodes the picture as a data URI, not larger than a screen."""
    height, width = image.shape[:2]
    drawn = Image.fromarray(image)
    drawn.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    drawn.save(buffer, 'JPEG', quality=88)
    return dict(
        width=width, height=height, source=_uri(buffer.getvalue(), 'jpeg')
    )


def _uri(data: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def _blocks(
    stage: _Stage, queries: Iterable[Queries], plans: list[Plan]
) -> list[dict[str, Any]]:
    return [
        dict(
            stage=one.stage,
            block=one.block,
            stride=one.stride,
            map=list(one.map_size),
            heads=one.heads,
            groups=one.groups,
            keys=list(one.points_xy.shape[2:4]),
            step=plan.step,
            queries=list(asked.size),
            start=[round(v, 4) for v in asked.start_xy],
            pace=[round(v, 4) for v in asked.step_xy],
        )
        for one, asked, plan in zip(stage.records, queries, plans)
    ]


def _write(
    head: dict[str, Any], stages: list[_Stage], plans: list[Plan], part: float
) -> Explorer:
    """Writes the page with a part of the kept keys."""
    blob, runs = Blob(), []
    for stage in stages:
        blocks = []
        for one, rows, plan in zip(stage.records, stage.rows, plans):
            kept = plan.keys if part == 1 else max(int(part * plan.keys), 1)
            blocks.append(
                {**encode_points(one, blob), **rows.encode(kept, blob)}
            )
        runs.append(
            dict(name=stage.name, blocks=blocks, found=_overlay(stage.found))
        )
    header = {**head, 'runs': runs}
    text = json.dumps(header, separators=(',', ':')).replace('<', '\\u003c')
    page = _asset('page.html')
    for mark, value in (
        ('/* STYLE */', _asset('page.css')),
        ('/* SCENE */', _asset('scene.js')),
        ('/* SCRIPT */', _asset('page.js')),
        ('TITLE', escape(f'{head["name"]} seen by {head["config"]}')),
        ('HEADER', text),
        ('WEIGHTS', blob.text()),
    ):
        page = page.replace(f'[[{mark}]]', value)
    return Explorer(page, header)


def _overlay(found: Findings) -> dict[str, Any]:
    """Encodes boxes, and masks or labels as a transparent picture."""
    overlay: dict[str, Any] = dict(
        boxes=[
            [*(round(float(v), 1) for v in box), name, round(score, 2)]
            + [COLOURS[int(label) % len(COLOURS)]]
            for box, name, score, label in zip(
                found.boxes, found.names, found.scores, found.labels
            )
        ]
    )
    numbers = None  # indices of colours, 0 for none
    if found.masks is not None and len(found.masks):
        numbers = np.zeros(found.masks.shape[1:], np.uint8)
        for mask, label in zip(found.masks[::-1], found.labels[::-1]):
            numbers[mask] = 1 + int(label) % len(COLOURS)
    elif found.label_map is not None:
        numbers = (1 + found.label_map % len(COLOURS)).astype(np.uint8)
        overlay['classes'] = [
            [found.names[i], COLOURS[i % len(COLOURS)]]
            for i in np.unique(found.label_map)
        ]
    elif not len(found.boxes):
        overlay['top'] = [
            [name, round(score, 3)]
            for name, score in zip(found.names, found.scores)
        ]
    if numbers is not None:
        overlay['masks'] = _veil(numbers)
    return overlay


def _veil(numbers: np.ndarray) -> str:
    """Encodes indices of colours (H, W), 0 for none, as a data URI."""
    drawn = Image.fromarray(numbers)
    side = LARGEST_SIDE // 2
    drawn.thumbnail((side, side), Image.Resampling.NEAREST)
    drawn = Image.fromarray(np.asarray(drawn), 'P')
    drawn.putpalette(
        bytes(3) + b''.join(bytes.fromhex(c[1:]) for c in COLOURS)
    )
    buffer = io.BytesIO()
    drawn.save(buffer, 'PNG', optimize=True, transparency=0)
    return _uri(buffer.getvalue(), 'png')


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding='utf-8')


def _assets_size() -> int:
    names = 'page.html', 'page.css', 'page.js', 'scene.js'
    return sum(len(_asset(name).encode()) for name in names)
