# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""An MLP for some pixels at a time, on a CPU.

The hidden map, the largest of a block, is never there as a whole: the two
products of a piece follow each other while its part of it is in the cache.
For the backward pass it is made again, piece by piece, which costs one
product in six and saves writing and reading it four times.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..norm import Norm
from .operators import connect, operator
from .piece_norm import PieceNorm, of_inputs
from .products import depthwise3x3, linear

# Pixels of a piece, few enough for the cache and enough for fast products.
PIECE_ROWS = 2048
# With a convolution inside the rows above and below are made once more.
CONV_PIECE_ROWS = 4096


def _pieces(rows: int) -> list[slice]:
    """Pieces of about the same size."""
    size = -(-rows // max(round(rows / PIECE_ROWS), 1))
    return [slice(i, i + size) for i in range(0, rows, size)]


@operator('mlp')
def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    residual: bool = False,
) -> Tensor:
    """See :func:`mmdat.ops.mlp.mlp`."""
    norm = PieceNorm(norm_weight, norm_bias, eps)
    rows = x.flatten(0, -2)
    out = x.new_empty(len(rows), len(weight2))
    for piece in _pieces(len(rows)):
        hidden = linear(norm(rows[piece]), weight1, bias1, gelu=True)
        _put(
            out[piece],
            linear(hidden, weight2, bias2),
            rows[piece] if residual else None,
        )
    return out.view(*x.shape[:-1], -1)


def _put(place: Tensor, out: Tensor, x: Tensor | None) -> None:
    """Writes what a branch gave, added to its input if there is one."""
    if x is None:
        place.copy_(out)
    else:
        torch.add(x, out, out=place)


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


def bands(x: Tensor) -> Iterator[Band]:
    """Cuts maps (B, H, W, C) into bands of about as many pixels."""
    batch, height, width, _ = x.shape
    rows = min(max(CONV_PIECE_ROWS // width, 1), height)
    images = max(CONV_PIECE_ROWS // (rows * width), 1)
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


def conv_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    norm: Norm | None,
    residual: bool,
) -> Tensor:
    """See :func:`mmdat.ops.mlp.conv_mlp`; without gradients."""
    out = x.new_empty(*x.shape[:-1], len(weight2))
    for band in bands(x):
        seen = x[band.images, band.seen]
        normed = seen if norm is None else norm(seen)
        hidden = _on_pixels(normed, weight1, bias1)
        conv = depthwise3x3(hidden, conv_weight, conv_bias)
        hidden = conv[:, band.inner].add_(hidden[:, band.inner])
        _put(
            out[band.images, band.rows],
            _on_pixels(torch.ops.aten.gelu_(hidden), weight2, bias2),
            seen[:, band.inner] if residual else None,
        )
    return out


def _on_pixels(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = linear(x.reshape(-1, x.shape[-1]), weight, bias)
    return rows.view(*x.shape[:-1], -1)


@operator('mlp_backward')
def _mlp_backward(
    grad: Tensor,
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad, rows = grad.flatten(0, -2), x.flatten(0, -2)
    x_grad = torch.empty_like(rows)
    weight1_grad = torch.zeros_like(weight1)
    weight2_grad = torch.zeros_like(weight2)
    bias1_grad = torch.zeros_like(bias1)
    norm = PieceNorm(norm_weight, norm_bias, eps)
    norm.start_gradients(x)
    for piece in _pieces(len(rows)):
        normed = norm(rows[piece])
        hidden = linear(normed, weight1, bias1)
        weight2_grad.addmm_(grad[piece].mT, F.gelu(hidden))
        hidden_grad = torch.ops.aten.gelu_backward(
            linear(grad[piece], weight2.mT), hidden
        )
        weight1_grad.addmm_(hidden_grad.mT, normed)
        bias1_grad += hidden_grad.sum(0)
        _put(
            x_grad[piece],
            norm.backward(linear(hidden_grad, weight1.mT)),
            grad[piece] if residual else None,
        )
    return (
        x_grad.view(x.shape),
        weight1_grad,
        bias1_grad,
        weight2_grad,
        grad.sum(0),
        *norm.gradients,
    )


def _empty(x, weight1, bias1, weight2, *_):
    return x.new_empty(*x.shape[:-1], len(weight2))


def _empty_backward(
    grad, x, weight1, bias1, weight2, norm_weight, norm_bias, *_
):
    inputs = x, weight1, bias1, weight2, weight2[:, 0], norm_weight, norm_bias
    return tuple(x.new_empty(0 if t is None else t.shape) for t in inputs)


def _save(ctx, inputs, output) -> None:
    x, weight1, bias1, weight2, _, *norm, ctx.eps, ctx.residual = inputs
    ctx.save_for_backward(x, weight1, bias1, weight2, *norm)


def _differentiate(backward, ctx, grad):
    saved = ctx.saved_tensors  # checkpointing lets them be read once
    grads = backward(grad, *saved, ctx.eps, ctx.residual)
    return *of_inputs(grads, saved[-2:]), None, None


connect(
    mlp,
    _mlp_backward,
    empty=_empty,
    empty_backward=_empty_backward,
    save=_save,
    differentiate=_differentiate,
)
