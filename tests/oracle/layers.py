# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The ordinary layers: convolution, linear, layer norm, GELU, softmax."""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def conv2d(
    image: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray = None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> np.ndarray:
    """Cross-correlation with zero padding, one kernel position at a time.

    Args:
        image: (H, W, C).
        weight: (D, C / groups, kh, kw).
        bias: (D,) or None.

    Returns:
        (H', W', D) with H' = floor((H + 2 padding - kh) / stride) + 1.
    """
    channels_out, group_in, kernel_h, kernel_w = weight.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height = (padded.shape[0] - kernel_h) // stride + 1
    width = (padded.shape[1] - kernel_w) // stride + 1
    if height < 1 or width < 1:
        raise ValueError(
            f'a {kernel_h}x{kernel_w} kernel does not fit a '
            f'padded map of {padded.shape[:2]}'
        )
    weight = weight.reshape(
        groups, channels_out // groups, group_in, kernel_h, kernel_w
    )
    out = np.zeros((groups, height * width, channels_out // groups))
    for ky in range(kernel_h):
        for kx in range(kernel_w):
            seen = padded[
                ky : ky + stride * (height - 1) + 1 : stride,
                kx : kx + stride * (width - 1) + 1 : stride,
            ]
            seen = seen.reshape(height * width, groups, group_in)
            # (G, H'W', C/G) @ (G, C/G, D/G)
            out += np.matmul(
                seen.transpose(1, 0, 2),
                weight[:, :, :, ky, kx].transpose(0, 2, 1),
            )
    out = out.transpose(1, 0, 2).reshape(height, width, channels_out)
    return out if bias is None else out + bias


def depthwise_conv2d(image, weight, bias=None, stride=1, padding=None):
    """conv2d with one group per channel; padded by k // 2 unless told."""
    if padding is None:
        padding = weight.shape[-1] // 2
    return conv2d(image, weight, bias, stride, padding, image.shape[-1])


def linear(x: np.ndarray, weight: np.ndarray, bias=None) -> np.ndarray:
    """(..., C) -> (..., D), weight (D, C) or that of a 1x1 convolution."""
    out = x @ weight.reshape(weight.shape[0], -1).T
    return out if bias is None else out + bias


def layer_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    """Normalises the last axis, biased variance, eps 1e-5, affine."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    """The exact GELU, x times the normal distribution function."""
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """exp(scores) over its sum; -inf means forbidden."""
    shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def avg_pool2d(image: np.ndarray, size: int) -> np.ndarray:
    """Means of size x size tiles; `size` must divide the map (H, W, C)."""
    height, width, channels = image.shape
    if height % size or width % size:
        raise ValueError(f'{size} does not divide the map {height}x{width}')
    tiles = image.reshape(height // size, size, width // size, size, channels)
    return tiles.mean(axis=(1, 3))


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(N, C) -> (heads, N, C / heads); a head is a run of channels."""
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(heads, N, C / heads) -> (N, C)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, bias=0.0
) -> np.ndarray:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
        q: (heads, Nq, d).
        k: (heads, Nk, d).
        v: (heads, Nk, d).
        bias: Broadcasts to (heads, Nq, Nk).

    Returns:
        (heads, Nq, d).
    """
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + bias
    return softmax(scores) @ v
