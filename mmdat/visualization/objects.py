# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whether points gather on objects: a measure."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .drawing import block_points
from .recorder import BlockRecord


@dataclass(frozen=True)
class OnObjects:
    """Shares that lie on objects, of one block.

    For random points, the three shares would be the same.

    Attributes:
        stage: Of the block, from 0.
        block: Within the stage, from 0.
        area: Share of the part of the picture that the network sees.
        reference: Share of the reference points, where keys would be read
            without offsets.
        points: Share of the points, of all groups.
        attention: Share of the attention of all queries on the picture.
    """

    stage: int
    block: int
    area: float
    reference: float
    points: float
    attention: float


def on_objects(
    record: BlockRecord, mask: np.ndarray, index: int = 0
) -> OnObjects:
    """The shares of points and attention on objects.

    A point is on an object if its nearest pixel is. A point outside the
    picture is on none.

    Args:
        record: Of a block, with ``received``.
        mask: Pixels of the picture that are on an object, (H, W), bool.
        index: Of the picture in the batch.

    Raises:
        ValueError: The mask has another size than the picture, or ``received``
            was not recorded.
    """
    frame = record.frames[index]
    if mask.shape != frame.size:
        raise ValueError(
            f'A mask must have the size of the picture, {frame.size}; got '
            f'{mask.shape}.'
        )
    if record.received is None:
        raise ValueError(
            'The share of attention needs received=True while recording.'
        )
    left, top, right, bottom = (
        round(edge + 0.5) for edge in frame.seen(record.input_size)
    )
    points, received = block_points(record, index=index)
    hits = _hits(points, mask)
    reference = record.reference_xy[index].reshape(-1, 2).numpy()
    return OnObjects(
        record.stage,
        record.block,
        float(mask[top:bottom, left:right].mean()),
        float(_hits(reference, mask).mean()),
        float(hits.mean()),
        float(received[hits].sum() / received.sum()),
    )


def mean_on_objects(found: Iterable[OnObjects]) -> list[OnObjects]:
    """Means over pictures, one for each block."""
    by_block: dict[tuple[int, int], list[OnObjects]] = {}
    for one in found:
        by_block.setdefault((one.stage, one.block), []).append(one)
    names = 'area', 'reference', 'points', 'attention'
    return [
        OnObjects(
            *block,
            *(float(np.mean([getattr(o, n) for o in some])) for n in names),
        )
        for block, some in sorted(by_block.items())
    ]


def _hits(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Which points (N, 2) lie on a mask (H, W)."""
    x, y = np.floor(points + 0.5).astype(int).T
    height, width = mask.shape
    on_picture = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    hits = np.zeros(len(points), bool)
    hits[on_picture] = mask[y[on_picture], x[on_picture]]
    return hits
