# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernels that sample a channels-last map at points.

In the lists of arguments, x_b, x_y, x_x, x_c are the strides of the map x
over batch, row, column and channel. All other tensors are contiguous: points
(B, groups, N, 2) and samples (B, N, C).
"""

import triton
import triton.language as tl

# These sizes vary between batches; no kernel is compiled for single values.
CHANGING = ['groups', 'number', 'height', 'width']


@triton.jit
def locate(points, number, valid, size):
    """Computes the pixel before a coordinate, and the distance from it.

    Args:
        points: Pointer to the first coordinate of the axis; y and x alternate.
        number: Indices of the points.
        valid: Whether each point exists.
        size: Pixels along the axis; -1 and 1 are the centres of the outer
            pixels.
    """
    place = tl.load(points + 2 * number, mask=valid, other=-3.0)
    place = (place + 1.0) * 0.5 * (size - 1)
    # NaN stays NaN, but its pixel is inside the bounds, whichever operand
    # maximum and minimum return. Pixels from -1 down and `size` up are zero.
    kept = tl.where(place > -2.0, place, -2.0)
    kept = tl.where(kept < size + 1.0, kept, size + 1.0)
    pixel = tl.floor(kept)
    kept = tl.where(place == place, kept, place)
    return pixel.to(tl.int32), kept - pixel


@triton.jit
def pixels(base, y, x, channel, valid, height, width, x_y, x_x, x_c):
    """Returns pointers (points, channels) to pixels, and which exist."""
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    offset = y.to(tl.int64) * x_y + x.to(tl.int64) * x_x
    pointers = base + offset[:, None] + channel[None, :] * x_c
    return pointers, inside[:, None] & valid


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    x, points, out, x_b, x_y, x_x, x_c,
    groups, number, height, width, group_channels,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Computes a block of samples of a group; grid (blocks, B * groups)."""
    pair = tl.program_id(1).to(tl.int64)  # image and group
    b, g = pair // groups, pair % groups
    x += b * x_b + g * group_channels * x_c
    points += pair * number * 2
    out += (b * number * groups + g) * group_channels
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = point < number
    y0, y = locate(points, point, there, height)
    x0, place = locate(points + 1, point, there, width)
    left, right = (1.0 - place)[:, None], place[:, None]
    top, bottom = (1.0 - y)[:, None], y[:, None]
    for first in range(0, group_channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        valid = there[:, None] & (c < group_channels)[None, :]
        near, seen = pixels(x, y0, x0, c, valid, height, width, x_y, x_x, x_c)
        total = tl.load(near, mask=seen, other=0.0) * (top * left)
        near, seen = pixels(
            x, y0, x0 + 1, c, valid, height, width, x_y, x_x, x_c
        )
        total += tl.load(near, mask=seen, other=0.0) * (top * right)
        near, seen = pixels(
            x, y0 + 1, x0, c, valid, height, width, x_y, x_x, x_c
        )
        total += tl.load(near, mask=seen, other=0.0) * (bottom * left)
        near, seen = pixels(
            x, y0 + 1, x0 + 1, c, valid, height, width, x_y, x_x, x_c
        )
        total += tl.load(near, mask=seen, other=0.0) * (bottom * right)
        written = point.to(tl.int64) * groups * group_channels
        tl.store(
            out + written[:, None] + c[None, :],
            total.to(out.dtype.element_ty),
            mask=valid,
        )


@triton.jit
def add_pixels(dx, y, x, channel, valid, height, width, channels, gradient):
    """Adds `gradient` to pixels of a map's gradient (height, width, C)."""
    near, seen = pixels(
        dx, y, x, channel, valid, height, width, width * channels, channels, 1
    )
    tl.atomic_add(near, gradient, mask=seen, sem='relaxed')


@triton.jit(do_not_specialize=CHANGING)
def backward_kernel(
    grad, x, points, dx, dpoints, x_b, x_y, x_x, x_c,
    groups, number, height, width, group_channels,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    NEEDS_MAP: tl.constexpr, NEEDS_POINTS: tl.constexpr,
):  # fmt: skip
    """Computes gradients from a block of samples; grid (blocks, B * groups).

    All programs add to `dx` (B, height, width, C), float32, with atomics. One
    program writes each element of `dpoints`, which has the shape of `points`.
    """
    pair = tl.program_id(1).to(tl.int64)
    b, g = pair // groups, pair % groups
    channels = groups * group_channels
    x += b * x_b + g * group_channels * x_c
    points += pair * number * 2
    dpoints += pair * number * 2
    grad += (b * number * groups + g) * group_channels
    dx += b * height * width * channels + g * group_channels
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = point < number
    y0, y = locate(points, point, there, height)
    x0, place = locate(points + 1, point, there, width)
    left, right = (1.0 - place)[:, None], place[:, None]
    top, bottom = (1.0 - y)[:, None], y[:, None]
    y_acc = tl.zeros((BLOCK,), tl.float32)
    x_acc = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, group_channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        valid = there[:, None] & (c < group_channels)[None, :]
        read = point.to(tl.int64) * channels
        slope = tl.load(
            grad + read[:, None] + c[None, :], mask=valid, other=0.0
        ).to(tl.float32)
        if NEEDS_POINTS:
            near, seen = pixels(
                x, y0, x0, c, valid, height, width, x_y, x_x, x_c
            )
            top_left = tl.load(near, mask=seen, other=0.0).to(tl.float32)
            near, seen = pixels(
                x, y0, x0 + 1, c, valid, height, width, x_y, x_x, x_c
            )
            top_right = tl.load(near, mask=seen, other=0.0).to(tl.float32)
            near, seen = pixels(
                x, y0 + 1, x0, c, valid, height, width, x_y, x_x, x_c
            )
            bottom_left = tl.load(near, mask=seen, other=0.0).to(tl.float32)
            near, seen = pixels(
                x, y0 + 1, x0 + 1, c, valid, height, width, x_y, x_x, x_c
            )
            bottom_right = tl.load(near, mask=seen, other=0.0).to(tl.float32)
            slope_y = (bottom_left - top_left) * left
            slope_y += (bottom_right - top_right) * right
            slope_x = (top_right - top_left) * top
            slope_x += (bottom_right - bottom_left) * bottom
            y_acc += tl.sum(slope * slope_y, 1)
            x_acc += tl.sum(slope * slope_x, 1)
        if NEEDS_MAP:
            add_pixels(
                dx, y0, x0, c, valid, height, width, channels,
                slope * top * left,
            )  # fmt: skip
            add_pixels(
                dx, y0, x0 + 1, c, valid, height, width, channels,
                slope * top * right,
            )  # fmt: skip
            add_pixels(
                dx, y0 + 1, x0, c, valid, height, width, channels,
                slope * bottom * left,
            )  # fmt: skip
            add_pixels(
                dx, y0 + 1, x0 + 1, c, valid, height, width, channels,
                slope * bottom * right,
            )  # fmt: skip
    if NEEDS_POINTS:
        y_acc *= (height - 1) * 0.5
        x_acc *= (width - 1) * 0.5
        tl.store(dpoints + 2 * point, y_acc, mask=there)
        tl.store(dpoints + 2 * point + 1, x_acc, mask=there)
