# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Steps that the kernels of deformable and neighbourhood attention share.

Scores are in units of log 2, because GPUs compute exp2 and not exp.
"""

import triton
import triton.language as tl

from .common import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    base, offsets, stride_d, valid, DIM: tl.constexpr, WIDE: tl.constexpr
):
    """Loads vectors of DIM channels, (rows, WIDE), padded with zeros.

    Args:
        base: Pointer from which offsets count, so that int32 suffices.
        offsets: Elements from `base` to each vector, (rows,), int32.
        stride_d: Elements from one channel to the next.
        valid: Whether each vector exists, (rows,).
        DIM: Number of channels.
        WIDE: Number of padded channels, a power of two.
    """
    d = tl.arange(0, WIDE)
    mask = valid[:, None]
    if DIM < WIDE:
        mask = mask & (d[None, :] < DIM)
    return tl.load(
        base + offsets[:, None] + d[None, :] * stride_d, mask=mask, other=0.0
    )


@triton.jit
def store_rows(
    base, offsets, stride_d, valid, DIM: tl.constexpr, WIDE: tl.constexpr, x
):
    """Stores `x` (rows, WIDE) at the addresses that ``load_rows`` reads."""
    d = tl.arange(0, WIDE)
    tl.store(
        base + offsets[:, None] + d[None, :] * stride_d,
        x.to(base.dtype.element_ty),
        mask=valid[:, None] & (d[None, :] < DIM),
    )


@triton.jit
def multiply(left, right, out, PRECISION: tl.constexpr):
    """Adds the matrix product of `left` and `right` to `out`, in float32.

    PRECISION is the precision of float32 products, ``'tf32'`` or ``'ieee'``.
    """
    if INTERPRETED:
        # The interpreter reads the bits of a bfloat16 as an integer.
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, out, input_precision=PRECISION)


@triton.jit
def multiply_finely(
    left, right, out, dtype: tl.constexpr, PRECISION: tl.constexpr
):
    """Multiplies `left` in float32 by `right`, which is exact in `dtype`.

    The rest of `left` that `dtype` cannot represent is multiplied too.
    """
    rounded = left.to(dtype)
    out = multiply(rounded, right, out, PRECISION)
    if dtype != tl.float32:
        rest = (left - rounded.to(tl.float32)).to(dtype)
        out = multiply(rest, right, out, PRECISION)
    return out


@triton.jit
def start_softmax(QUERIES: tl.constexpr, WIDE: tl.constexpr):
    """Returns the running softmax before any key: zeros and a lowest score.

    The largest score starts at the lowest finite number, because subtracting
    -inf from a score of -inf gives NaN.
    """
    out = tl.zeros((QUERIES, WIDE), tl.float32)
    top = tl.full((QUERIES,), -3.4028234e38, tl.float32)
    return out, top, tl.zeros((QUERIES,), tl.float32)


@triton.jit
def softmax_step(scores, value, out, top, total, PRECISION: tl.constexpr):
    """Adds a block of keys to the running softmax of queries.

    Args:
        scores: (queries, keys) in units of log 2, -inf for masked keys.
        value: Values (keys, d).
        out: Sum so far of weights times values, (queries, d), float32.
        top: Largest score so far, (queries,).
        total: Sum so far of the weights, (queries,).
        PRECISION: See ``multiply``.

    Returns:
        New `out`, `top` and `total`; weights are relative to exp2(top).
    """
    new_top = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new_top[:, None])
    decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)
    out = out * decay[:, None]
    out = multiply(weights.to(value.dtype), value, out, PRECISION)
    return out, new_top, total


@triton.jit
def softmax_end(out, top, total):
    """Returns the normalised `out` and log2 of the sum of exponentials.

    Rows without a key, which lie outside the map, become zeros.
    """
    total = tl.where(total == 0.0, 1.0, total)
    return out / total[:, None], top + tl.log2(total)


@triton.jit
def score_gradient(
    left,
    right,
    left_slope,
    right_slope,
    shift,
    delta,
    scale,
    PRECISION: tl.constexpr,
):
    """Computes the weights of a block and the gradient of its scores.

    A block is (queries, keys), or (keys, queries) with left and right
    exchanged.

    Args:
        left: Queries (M, d).
        right: Keys (N, d).
        left_slope: Gradient of the output, (M, d).
        right_slope: Values (N, d).
        shift: Bias minus the logarithm of the sum (see ``softmax_end``),
            in units of log 2, (M, N); -inf for masked pairs.
        delta: Sum over d of the output times its gradient; broadcasts over
            the keys.
        scale: Factor on the products of query and key, in units of log 2.
        PRECISION: See ``multiply``.

    Returns:
        Two arrays (M, N), zero for masked pairs.
    """
    scores = multiply(left, tl.trans(right), None, PRECISION)
    weights = tl.exp2(scores * scale + shift)
    slope = multiply(left_slope, tl.trans(right_slope), None, PRECISION)
    return weights, weights * (slope - delta)
