# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The attention weights of a block, which its backends never write out."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..models.attention import DeformableAttention
from ..ops import sample_at_points
from ..ops.precision import at_least_float32, autocast_off

# Weights held at one time, all heads together.
CHUNK_WEIGHTS = 2**22

# Queries between two chosen ones that are computed along with them.
FEW = 8


class AttentionWeights:
    """softmax(q k^T / sqrt(d) + bias) of one block, a few queries at a time.

    Points, queries and keys come from the block's own parts, in the types of
    its forward pass; the weights are computed in float32 or wider and do not
    depend on the backend.

    Args:
        module: The block's attention.
        x: Its input (B, H, W, C).

    Attributes:
        points_yx: Where the keys are read, (B, groups, Hk, Wk, 2).
    """

    def __init__(self, module: DeformableAttention, x: Tensor) -> None:
        q = module.proj_q(x)
        self.points_yx = module.points_yx(q)
        sampled = (
            module._pool(x)
            if module.conv_offset is None
            else sample_at_points(x, self.points_yx)
        )
        k = module.proj_k(sampled)
        # B, heads, queries or keys, d
        self._q, self._k = (
            at_least_float32(t.unflatten(-1, (module.num_heads, -1)))
            .flatten(1, 2)
            .transpose(1, 2)
            for t in (q, k)
        )
        self._bias = module._bias(x.shape[1:3], self.points_yx)

    def rows(self, start: int, stop: int) -> Tensor:
        """Weights (B, heads, stop - start, Ns) of some queries."""
        q = self._q[:, :, start:stop]
        with autocast_off(q):
            scores = q.shape[-1] ** -0.5 * (q @ self._k.transpose(-2, -1))
            if self._bias is not None:
                scores = scores + self._bias.rows(start, stop)
            return scores.softmax(dim=-1)

    def of(self, queries: Tensor) -> Tensor:
        """Weights of chosen queries.

        Args:
            queries: For each picture numbers of queries, row-major over the
                map, (B, Q).

        Returns:
            Tensor (B, heads, Q, Ns).
        """
        batch, heads, _, _ = self._q.shape
        weights = self._q.new_zeros(
            batch, heads, queries.shape[1], self._k.shape[2]
        )
        queries = queries.to(weights.device)
        for start, stop in self._spans(queries):
            rows = self.rows(start, stop)
            for i, numbers in enumerate(queries):
                (here,) = torch.where((numbers >= start) & (numbers < stop))
                weights[i, :, here] = rows[i][:, numbers[here] - start]
        return weights

    def _spans(self, queries: Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of neighbours that hold all chosen queries."""
        numbers = queries.flatten().unique().tolist()
        while numbers:
            start = stop = numbers[0]
            count = 0
            for number in numbers:
                far = number - stop > FEW
                if far or number - start >= self._chunk:
                    break
                count, stop = count + 1, number + 1
            yield start, stop
            numbers = numbers[count:]

    @property
    def _chunk(self) -> int:
        """Queries whose weights are held at one time."""
        batch, heads, _, _ = self._q.shape
        return max(CHUNK_WEIGHTS // (batch * heads * self._k.shape[2]), 1)

    def received(self, mask: Tensor) -> Tensor:
        """What each key gets from the queries of a mask, on average.

        Args:
            mask: Which queries count, (B, H W).

        Returns:
            Tensor (B, heads, Ns), which sums to 1 over the keys, or is 0
            where a mask is empty.
        """
        batch, heads, queries, _ = self._q.shape
        keys = self._k.shape[2]
        chunk = self._chunk
        mask = mask.to(self._q)
        total = self._q.new_zeros(batch, heads, keys)
        for start in range(0, queries, chunk):
            stop = min(start + chunk, queries)
            total += torch.einsum(
                'bhqk,bq->bhk', self.rows(start, stop), mask[:, start:stop]
            )
        return total / mask.sum(dim=1).clamp(min=1)[:, None, None]
