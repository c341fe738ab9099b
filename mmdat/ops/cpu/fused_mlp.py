# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""MLPs on a CPU, one chunk of pixels after another.

The hidden map, the largest of a block, never exists as a whole: the two
products of a chunk follow each other while its part of it is in the cache.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked_op import ChunkedOp
from .linear import product

# Pixels of a chunk, few enough for the cache and enough for fast products.
CHUNK_ROWS = 2048
# With a convolution inside, the rows above and below are computed once more.
CONV_CHUNK_ROWS = 4096


class Rows(NamedTuple):
    """Some pixels of all maps of a batch.

    Attributes:
        rows: Their numbers.
    """

    rows: slice

    def read(self, x: Tensor) -> Tensor:
        """See ``Chunk``."""
        return x.view(-1, x.shape[-1])[self.rows]

    def write(self, out: Tensor, result: Tensor) -> None:
        """See ``Chunk``."""
        self.read(out).copy_(result)

    read_grad = read
    add_grad = write


def _chunks(x: Tensor) -> Iterator[Rows]:
    """Chunks of about the same size."""
    rows = x.shape[:-1].numel()
    size = -(-rows // max(round(rows / CHUNK_ROWS), 1))
    for start in range(0, rows, size):
        yield Rows(slice(start, start + size))


def _mlp(
    x: Tensor,
    chunk: Rows,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> Tensor:
    """Linear, GELU, linear.

    Args:
        x: (n, C).
        chunk: Not used.
        weight1: (hidden, C).
        bias1: (hidden,).
        weight2: (C, hidden).
        bias2: (C,).
    """
    return product(product(x, weight1, bias1, gelu=True), weight2, bias2)


def _mlp_backward(
    grad: Tensor,
    x: Tensor,
    chunk: Rows,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
) -> tuple[Tensor, ...]:
    """A tenth faster than autograd: it runs the faster product too."""
    hidden = product(x, weight1, bias1)
    hidden_grad = torch.ops.aten.gelu_backward(
        product(grad, weight2.mT), hidden
    )
    return (
        product(hidden_grad, weight1.mT),
        hidden_grad.mT @ x,
        hidden_grad.sum(0),
        grad.mT @ F.gelu(hidden),
        grad.sum(0),
    )


mlp = ChunkedOp('mlp', _chunks, _mlp, _mlp_backward)


class Band(NamedTuple):
    """Rows of some maps of a batch (B, H, W, C).

    Attributes:
        images: Which maps.
        rows: Which rows.
        seen: Those and what a convolution sees of the rows next to them.
        inner: Where `rows` are in `seen`.
    """

    images: slice
    rows: slice
    seen: slice
    inner: slice

    def read(self, x: Tensor) -> Tensor:
        """See ``Chunk``."""
        return x[self.images, self.seen]

    def write(self, out: Tensor, result: Tensor) -> None:
        """See ``Chunk``."""
        self.read_grad(out).copy_(result)

    def read_grad(self, grad: Tensor) -> Tensor:
        """See ``Chunk``."""
        return grad[self.images, self.rows]

    def add_grad(self, x_grad: Tensor, grad: Tensor) -> None:
        """See ``Chunk``; the edges belong to two bands."""
        self.read(x_grad).add_(grad)


def _bands(x: Tensor) -> Iterator[Band]:
    """Cuts maps (B, H, W, C) into bands of about as many pixels."""
    batch, height, width, _ = x.shape
    rows = min(max(CONV_CHUNK_ROWS // width, 1), height)
    images = max(CONV_CHUNK_ROWS // (rows * width), 1)
    for image in range(0, batch, images):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            above = min(top, 1)
            yield Band(
                slice(image, image + images),
                slice(top, bottom),
                slice(top - above, min(bottom + 1, height)),
                slice(above, above + bottom - top),
            )


def _conv_mlp(
    x: Tensor,
    band: Band,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
) -> Tensor:
    """Linear, x + depthwise 3x3 of x, GELU, linear (DAT++, sec. 4.2).

    Args:
        x: Rows that the convolution sees (b, h, W, C).
        band: Which of them are wanted.
        weight1: (hidden, C).
        bias1: (hidden,).
        weight2: (C, hidden).
        bias2: (C,).
        conv_weight: (hidden, 1, 3, 3).
        conv_bias: (hidden,).
    """
    hidden = _on_pixels(x, weight1, bias1)
    hidden = _add_conv(hidden, band, conv_weight, conv_bias)
    if torch.is_grad_enabled():
        hidden = F.gelu(hidden)
    else:
        torch.ops.aten.gelu_(hidden)
    return _on_pixels(hidden, weight2, bias2)


def _add_conv(
    hidden: Tensor, band: Band, weight: Tensor, bias: Tensor
) -> Tensor:
    """``x + depthwise 3x3 of x`` in the rows of a band."""
    conv = F.conv2d(
        hidden.permute(0, 3, 1, 2),
        weight,
        bias,
        padding=1,
        groups=len(weight),
    )
    conv = conv.permute(0, 2, 3, 1)[:, band.inner]
    return conv.add_(hidden[:, band.inner])


def _conv_mlp_backward(
    grad: Tensor,
    x: Tensor,
    band: Band,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
) -> tuple[Tensor, ...]:
    """An explicit gradient, so that compilers see one operator."""
    before = _on_pixels(x, weight1, bias1)
    hidden = _add_conv(before, band, conv_weight, conv_bias)
    hidden_grad = torch.ops.aten.gelu_backward(
        _on_pixels(grad, weight2.mT), hidden
    )
    rows, hidden = grad.flatten(0, 2), F.gelu(hidden).flatten(0, 2)
    above, below = band.inner.start, x.shape[1] - band.inner.stop
    hidden_grad = F.pad(hidden_grad, (0, 0, 0, 0, above, below))
    through, *conv_grads = torch.ops.aten.convolution_backward(
        hidden_grad.permute(0, 3, 1, 2),
        before.permute(0, 3, 1, 2),
        conv_weight,
        [len(conv_bias)],
        *([1, 1], [1, 1], [1, 1]),  # stride, padding, dilation
        *(False, [0, 0], len(conv_weight)),  # transposed, groups
        [True] * 3,
    )
    hidden_grad = hidden_grad + through.permute(0, 2, 3, 1)
    hidden_rows = hidden_grad.flatten(0, 2)
    return (
        _on_pixels(hidden_grad, weight1.mT),
        hidden_rows.mT @ x.reshape(-1, x.shape[-1]),
        hidden_rows.sum(0),
        rows.mT @ hidden,
        rows.sum(0),
        *conv_grads,
    )


def _on_pixels(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    rows = product(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], -1)


conv_mlp = ChunkedOp('conv_mlp', _bands, _conv_mlp, _conv_mlp_backward)
