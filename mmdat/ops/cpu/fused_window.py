# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention in windows on a CPU, one chunk of windows after another.

A chunk reads and writes its pixels by their index in the map, so no map is
padded, rolled or cut.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sdpa.shared_bias import attention_weights, score_gradients
from ..sdpa.windows import mask_seam
from ..windows import WindowLayout, WindowPart, split_windows
from .chunked_op import ChunkedOp
from .linear import product

# Pixels of a chunk, few enough for the cache and enough for fast products.
CHUNK_ROWS = 2048


class Windows(NamedTuple):
    """Some windows with the same mask.

    Attributes:
        pixels: Places of their pixels in the rows of all maps of the batch,
            (n w w,); any place where there is padding.
        inside: The entries of `pixels` that are not padding, None if all are.
        padding: The others, None if there are none.
        layout: How the map is cut.
        part: Which windows of it they belong to.
    """

    pixels: Tensor
    inside: Tensor | None
    padding: Tensor | None
    layout: WindowLayout
    part: WindowPart

    def read(self, x: Tensor) -> Tensor:
        """See ``Chunk``; anything in the padding."""
        return _rows(x).index_select(0, self.pixels)

    def write(self, out: Tensor, result: Tensor) -> None:
        """See ``Chunk``."""
        pixels = self.pixels
        if self.inside is not None:
            pixels, result = pixels[self.inside], result[self.inside]
        _rows(out).index_copy_(0, pixels, result)

    def read_grad(self, grad: Tensor) -> Tensor:
        """See ``Chunk``."""
        return self.pad(self.read(grad))

    add_grad = write

    def pad(self, rows: Tensor) -> Tensor:
        """Zeros in the padding, in place."""
        if self.padding is not None:
            rows.index_fill_(0, self.padding, 0)
        return rows


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _chunks(x: Tensor, size: int, shift: int) -> Iterator[Windows]:
    batch, height, width, _ = x.shape
    layout = WindowLayout(height, width, size, shift)
    # A map is padded with zeros, which no pixel has for its number.
    number = torch.arange(1, height * width + 1, device=x.device)
    places = split_windows(number.view(1, height, width, 1), layout)
    places = places[..., 0] - 1  # windows, 1, w w
    first = height * width * torch.arange(batch, device=x.device)[:, None]
    count = max(CHUNK_ROWS // size**2, 1)
    for part in layout.parts():
        place = places[part.windows]
        padded = (place < 0).expand(-1, batch, -1).flatten(0, 1)
        place = (place + first).flatten(0, 1).clamp_min(0)
        number = max(round(len(place) / count), 1)
        for some, outside in zip(
            place.tensor_split(number), padded.tensor_split(number)
        ):
            outside = outside.flatten()
            inside = padding = None
            if outside.any():
                inside = (~outside).nonzero()[:, 0]
                padding = outside.nonzero()[:, 0]
            yield Windows(some.flatten(), inside, padding, layout, part)


def _by_head(rows: Tensor, count: int, bias: Tensor) -> Tensor:
    """(n w w, count C) to (count, n, heads, w w, d)."""
    heads, size = bias.shape[:2]
    rows = rows.unflatten(1, (count, heads, -1)).unflatten(0, (-1, size))
    return rows.permute(2, 0, 3, 1, 4)


def _window_attention(
    x: Tensor,
    windows: Windows,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    bias: Tensor,
) -> Tensor:
    """Attention within some windows, with the projections around it.

    Args:
        x: Pixels (n w w, C).
        windows: The windows.
        qkv_weight: (3 D, C), where heads may be narrower than in the model
            that was built, D < C.
        qkv_bias: (3 D,).
        out_weight: (C, D).
        out_bias: (C,).
        bias: (heads, w w, w w), query by key.
    """
    bias = mask_seam(bias, windows.layout, windows.part)
    qkv = product(windows.pad(x), qkv_weight, qkv_bias)
    out = F.scaled_dot_product_attention(
        *_by_head(qkv, 3, bias), attn_mask=bias[None]
    )
    out = out.transpose(1, 2).flatten(2).flatten(0, 1)
    return product(out, out_weight, out_bias)


def _window_attention_backward(
    grad: Tensor,
    x: Tensor,
    windows: Windows,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    bias: Tensor,
) -> tuple[Tensor, ...]:
    bias = mask_seam(bias, windows.layout, windows.part)
    x = windows.pad(x)
    q, k, v = _by_head(product(x, qkv_weight, qkv_bias), 3, bias)
    scale = q.shape[-1] ** -0.5
    q.mul_(scale)
    weights = attention_weights(q, k, bias)
    attended = (weights @ v).transpose(1, 2).flatten(2).flatten(0, 1)
    (grads,) = _by_head(product(grad, out_weight.mT), 1, bias)
    scores_grad = score_gradients(grads, v, weights)
    qkv_grad = x.new_empty(len(x), len(qkv_bias))
    q_grad, k_grad, v_grad = _by_head(qkv_grad, 3, bias)
    v_grad.copy_(weights.mT @ grads)
    k_grad.copy_(scores_grad.mT @ q)
    torch.mul(scores_grad @ k, scale, out=q_grad)
    return (
        windows.pad(product(qkv_grad, qkv_weight.mT)),
        qkv_grad.mT @ x,
        qkv_grad.sum(0),
        grad.mT @ attended,
        grad.sum(0),
        scores_grad.sum(0),
    )


window_attention = ChunkedOp(
    'window_attention_branch',
    _chunks,
    _window_attention,
    _window_attention_backward,
)
