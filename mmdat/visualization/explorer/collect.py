# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Collects what the page shows of each block, as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..frames import map_grids
from ..picture import Picture, record
from ..recorder import BlockRecord, find_backbone
from .encode import Blob, Plan, Rows


@dataclass(frozen=True)
class Queries:
    """The queries of a block on the page: a regular grid on the picture.

    Attributes:
        size: Rows and columns.
        start_xy: Pixel of the first query.
        step_xy: Pixels between neighbouring queries.
        asked_xy: Pixels of the queries for the recorder, row by row, (Q, 2).
    """

    size: tuple[int, int]
    start_xy: tuple[float, float]
    step_xy: tuple[float, float]
    asked_xy: Tensor


def choose_queries(
    model: nn.Module, picture: Picture, one: BlockRecord, plan: Plan
) -> Queries:
    """Selects every `step`-th position of a map that lies on the picture."""
    grid = map_grids(find_backbone(model))[one.stage]
    centres_xy = picture.frame.to_picture(grid.centres(one.map_size))
    x, y = centres_xy[0, :, 0], centres_xy[:, 0, 1]
    height, width = picture.frame.size
    axes = []
    for values, length in ((x, width), (y, height)):
        values = values[(values >= -0.5) & (values <= length - 0.5)]
        rest = (len(values) - 1) % plan.step
        axes.append(values[rest // 2 :: plan.step])
    x, y = axes
    asked_xy = torch.stack(
        torch.meshgrid(
            x.clamp(0, width - 1), y.clamp(0, height - 1), indexing='xy'
        ),
        dim=-1,
    )
    steps = [float(v[1] - v[0]) if len(v) > 1 else 0.0 for v in axes]
    return Queries(
        (len(y), len(x)),
        (float(x[0]), float(y[0])),
        (steps[0], steps[1]),
        asked_xy.flatten(0, 1),
    )


def collect_rows(
    model: nn.Module,
    picture: Picture,
    queries: Mapping[tuple[int, int], Queries],
    plans: Mapping[tuple[int, int], Plan],
) -> list[Rows]:
    """Returns the largest weights of each query, by block."""
    records = record(
        model,
        picture,
        queries,
        {key: asked.asked_xy.tolist() for key, asked in queries.items()},
        received=False,
    )
    rows = []
    for key, one in records.items():
        weights = one.weights[0].flatten(-2)  # heads, Q, Ns
        top = weights.topk(plans[key].keys, dim=-1)
        rows.append(
            Rows(
                top.indices.numpy().astype(np.uint16),
                top.values.float().numpy(),
                weights.shape[-1],
            )
        )
    return rows


def encode_points(one: BlockRecord, blob: Blob) -> dict[str, Any]:
    """Encodes points and reference points in pixels, and their attention."""
    points = one.points_xy[0].numpy()
    reference = one.reference_xy[0].numpy()
    size = max(np.abs(points).max(), np.abs(reference).max(), 1)
    unit = 32000 / size
    received = np.sqrt(one.received[0].flatten(1).numpy())

    def whole(values: np.ndarray) -> np.ndarray:
        return np.rint(values.reshape(-1, 2) * unit).astype('<i2')

    return dict(
        unit=float(unit),
        points=blob.add(whole(points)),
        reference=blob.add(whole(reference)),
        received=blob.add(np.rint(received * 65535).astype('<u2')),
    )
