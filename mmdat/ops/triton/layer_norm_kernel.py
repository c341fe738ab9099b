# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernel of a LayerNorm whose output type differs from its input type."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=['rows'])
def forward_kernel(
    x, weight, bias, out, mean, rstd, rows, eps,
    CHANNELS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalises a block of rows; grid (blocks,). Tensors are contiguous.

    WIDE is a power of two of at least CHANNELS. The backward pass needs `mean`
    and `rstd`, 1 / standard deviation, of each row.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDE)
    known = channel < CHANNELS
    mask = (row < rows)[:, None] & known[None, :]
    place = row[:, None] * CHANNELS + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    middle = tl.sum(value, 1) / CHANNELS
    value = tl.where(known[None, :], value - middle[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / CHANNELS + eps)
    w = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    value = value * scale[:, None] * w[None, :] + b[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(rstd + row, scale, mask=row < rows)
