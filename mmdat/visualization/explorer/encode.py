# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Encodes attention weights in few bytes, the largest keys first.

A row is the attention of one query in one head. Each row keeps as many keys as
the size of the page allows. A weight w takes one byte, sqrt(w / largest) *
255. Its error is at most 2 / 255 of the largest weight of the row, and much
less for small weights. The largest weight takes two bytes. ``page.js`` decodes
these arrays.
"""

import base64
import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_QUERIES = 1600  # of a map; more are not visible with a mouse
FEWEST_KEYS = 24  # of a row; with fewer, the plan drops queries first
LEAST_QUERIES = 150  # of a map; with fewer, the plan drops keys again
LEAST_KEYS = 6


@dataclass(frozen=True)
class Plan:
    """The part of a block that the page keeps.

    Attributes:
        step: Step between kept queries, on both axes.
        keys: Number of kept keys per row: all, or the largest.
    """

    step: int
    keys: int


def plan_block(
    map_size: tuple[int, int], heads: int, keys: int, room: float
) -> Plan | None:
    """Returns the finest plan for a block that fits into `room` bytes.

    Args:
        map_size: (H, W) of the map of queries.
        heads: Rows per query.
        keys: Keys per row.
        room: Available bytes.

    Returns:
        The plan; None if no plan fits.
    """
    each = 3 if keys > 256 else 2
    for step in range(1, max(map_size) + 1):
        queries = -(-map_size[0] // step) * -(-map_size[1] // step)
        if queries > MOST_QUERIES:
            continue
        rows = queries * heads
        if rows * (keys + 2) <= room:  # all keys, so indices are not needed
            return Plan(step, keys)
        kept = min(int((room / rows - 2) // each), keys - 1)
        if kept >= FEWEST_KEYS:
            return Plan(step, kept)
        if queries <= LEAST_QUERIES:
            return Plan(step, kept) if kept >= min(LEAST_KEYS, keys) else None
    return None


def plan_blocks(
    blocks: list[tuple[tuple[int, int], int, int]], room: float
) -> list[Plan] | None:
    """Plans several blocks; large blocks use the bytes that small ones leave.

    Args:
        blocks: Map size, heads and keys of each block.
        room: Available bytes for all blocks.

    Returns:
        A plan for each block; None if a block does not fit.
    """

    def need(i: int) -> int:
        (height, width), heads, keys = blocks[i]
        return height * width * heads * keys

    plans: dict[int, Plan] = {}
    order = sorted(range(len(blocks)), key=need)
    for number, i in enumerate(order):
        plan = plan_block(*blocks[i], room / (len(order) - number))
        if plan is None:
            return None
        plans[i] = plan
        map_size, heads, keys = blocks[i]
        rows = heads * -(-map_size[0] // plan.step)
        rows *= -(-map_size[1] // plan.step)
        room -= rows * (plan.keys * (1 if plan.keys == keys else 3) + 2)
    return [plans[i] for i in range(len(blocks))]


class Blob:
    """Concatenates arrays, compresses them and encodes them as base64."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, array: np.ndarray) -> list[Any]:
        """Appends an array; returns its type, start in bytes and length."""
        data = np.ascontiguousarray(array).tobytes()
        data += bytes(-len(data) % 4)
        start = self._length
        self._parts.append(data)
        self._length += len(data)
        return [array.dtype.name, start, int(array.size)]

    def text(self) -> str:
        """Returns all arrays as compressed base64 text."""
        packed = gzip.compress(b''.join(self._parts), 9, mtime=0)
        return base64.b64encode(packed).decode()


@dataclass(frozen=True)
class Rows:
    """Attention of the queries of one block, largest keys first.

    Attributes:
        index: Indices of the keys (heads, Q, K).
        weight: Weights of these keys (heads, Q, K).
        keys: Number of all keys.
    """

    index: np.ndarray
    weight: np.ndarray
    keys: int

    def encode(self, kept: int, blob: Blob) -> dict[str, Any]:
        """Writes the `kept` largest keys of each row.

        Returns:
            Places of the arrays, and the kept share of the attention.
        """
        index = self.index[..., :kept]
        weight = self.weight[..., :kept].astype(np.float64)
        peak = np.maximum(weight[..., :1], 1e-12)
        codes = np.rint(np.sqrt(weight / peak) * 255).astype(np.int16)
        found = dict(
            kept=index.shape[-1],
            held=round(float(weight.sum(-1).mean()), 4),
            peaks=blob.add(np.rint(np.sqrt(peak) * 65535).astype('<u2')),
        )
        if index.shape[-1] == self.keys:
            full = np.empty_like(codes)
            np.put_along_axis(full, index.astype(int), codes, -1)
            return {**found, 'codes': blob.add(full.astype(np.uint8))}
        falls = -np.diff(codes, axis=-1, prepend=255)
        found['falls'] = blob.add(falls.astype(np.uint8))
        found['low'] = blob.add((index & 255).astype(np.uint8))
        if self.keys > 256:
            found['high'] = blob.add((index >> 8).astype(np.uint8))
        return found
