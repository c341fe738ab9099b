# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Offsets in a few numbers."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .recorder import BlockRecord


def offset_statistics(
    records: Iterable[BlockRecord],
) -> Mapping[str, float]:
    """What the offsets of each stage do, over blocks, groups and pictures.

    Args:
        records: Of any blocks and pictures.

    Returns:
        By ``stage<i>_<what>``, with the stage from 0 and what one of
        ``displacement`` (mean distance from reference point to point, in
        pixels), ``outside`` (share of the points that lie outside the picture
        or in its padding) and ``clamped`` (share of the points that DAT++
        holds back at the edge of the map; the last row and column of its
        reference points lie beyond the edge to begin with).
    """
    by_stage: dict[int, list[BlockRecord]] = {}
    for record in records:
        by_stage.setdefault(record.stage, []).append(record)
    found = {}
    for stage in sorted(by_stage):
        some = by_stage[stage]
        for name, values in (
            ('displacement', [r.displacement for r in some]),
            ('outside', [~r.inside for r in some]),
            ('clamped', [r.clamped for r in some]),
        ):
            found[f'stage{stage}_{name}'] = _mean(values)
    return found


def _mean(values: list[Tensor]) -> float:
    return float(torch.cat([v.double().flatten() for v in values]).mean())
