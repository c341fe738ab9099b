# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention weights in few bytes, the largest keys of each query first.

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

MOST_QUERIES = 1600  # of a map, more make the mouse no finer
FEWEST_KEYS = 24  # of a row, before queries are left out for more
LEAST_QUERIES = 150  # of a map, before keys are left out again
LEAST_KEYS = 6


@dataclass(frozen=True)
class Plan:
    """How much of one block is kept.

    Attributes:
        step: Every how many queries, on both axes.
        keys: How many keys of a row, all of them or the largest.
    """

    step: int
    keys: int


def plan_block(
    map_size: tuple[int, int], heads: int, keys: int, room: float
) -> Plan | None:
    """The finest plan for a block that fits into so many bytes.

    Args:
        map_size: (H, W) of the queries.
        heads: Rows of each query.
        keys: Keys of each row.
        room: Bytes.

    Returns:
        The plan; None if there is no room for any.
    """
    each = 3 if keys > 256 else 2
    for step in range(1, max(map_size) + 1):
        queries = -(-map_size[0] // step) * -(-map_size[1] // step)
        if queries > MOST_QUERIES:
            continue
        rows = queries * heads
        if rows * (keys + 2) <= room:  # all, so without their numbers
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
    """Plans for several blocks; what small ones leave goes to large ones.

    Args:
        blocks: Map size, heads and keys of each.
        room: Bytes for all of them.

    Returns:
        A plan for each; None if there is no room for one of them.
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
    """Arrays one after another, compressed as base64."""

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
        """All of it."""
        packed = gzip.compress(b''.join(self._parts), 9, mtime=0)
        return base64.b64encode(packed).decode()


@dataclass(frozen=True)
class Rows:
    """Attention of the queries of one block, largest keys first.

    Attributes:
        index: Keys (heads, Q, K).
        weight: Their weights, the same.
        keys: Keys there are.
    """

    index: np.ndarray
    weight: np.ndarray
    keys: int

    def encode(self, kept: int, blob: Blob) -> dict[str, Any]:
        """Writes so many keys of each row.

        Returns:
            Where the arrays are, and the share of the attention they hold.
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
