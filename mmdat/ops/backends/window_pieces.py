# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attention in windows with its projections, for some windows at a time.

Windows are read from the map and their results written to it by the pixels'
places, so that no map is padded, rolled or cut. Of a step of training only the
map is kept.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..windows import WindowLayout, split_windows
from . import pieces
from .operators import connect, operator
from .piece_norm import PieceNorm, of_inputs
from .products import linear
from .small_bias import attention_weights, score_gradients
from .tiled_windows import mask_seam

# Pixels of a piece, few enough for the cache and enough for fast products.
PIECE_ROWS = 2048


def declines(x: Tensor, qkv_weight: Tensor, *args) -> str | None:
    """Why attention in windows does not run in pieces, or None."""
    *_, dropout = args
    if dropout:
        return 'it has no dropout.'
    return pieces.declines(x, qkv_weight)


class _Piece(NamedTuple):
    """Some windows.

    Attributes:
        pixels: Places of their pixels in the rows of all maps of the batch,
            (n w w,); where there is padding, one row beyond the last.
        padding: Which of them are padding, None if there is none.
        bias: What is added to the scores of each, (heads, w w, w w).
    """

    pixels: Tensor
    padding: Tensor | None
    bias: Tensor

    def take(self, rows: Tensor) -> Tensor:
        """Their pixels of all rows (m, C); anything in the padding."""
        if self.padding is None:
            return rows.index_select(0, self.pixels)
        inside = self.pixels.clamp_max(len(rows) - 1)
        return rows.index_select(0, inside)

    def pad(self, taken: Tensor) -> Tensor:
        """Zeros in the padding, in place."""
        if self.padding is not None:
            taken.index_fill_(0, self.padding, 0)
        return taken


def _pieces(
    batch: int, layout: WindowLayout, bias: Tensor
) -> Iterator[_Piece]:
    pixels = layout.height * layout.width
    # A map is padded with zeros, which no pixel has for its number.
    number = torch.arange(1, pixels + 1, device=bias.device)
    places = split_windows(number.view(1, *layout[:2], 1), layout)
    places = places[..., 0] - 1  # windows, 1, w w
    first = pixels * torch.arange(batch, device=bias.device)[:, None]
    count = max(PIECE_ROWS // layout.size**2, 1)
    for part in layout.parts():
        place = places[part.windows]
        padded = bool((place < 0).any())
        place = torch.where(place < 0, batch * pixels, place + first)
        place = place.flatten(0, 1)
        part_bias = mask_seam(bias, layout, part)
        for some in place.tensor_split(max(round(len(place) / count), 1)):
            some = some.flatten()
            padding = (some == batch * pixels).nonzero()[:, 0]
            yield _Piece(some, padding if padded else None, part_bias)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _by_head(rows: Tensor, count: int, bias: Tensor) -> Tensor:
    """(n w w, count C) to (count, n, heads, w w, d)."""
    heads, size = bias.shape[:2]
    rows = rows.unflatten(1, (count, heads, -1)).unflatten(0, (-1, size))
    return rows.permute(2, 0, 3, 1, 4)


@operator('window_self_attention')
def window_self_attention(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    bias: Tensor,
    size: int,
    shift: int,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    residual: bool = False,
) -> Tensor:
    """See :func:`mmdat.ops.window_self_attention`.

    Args:
        x: Map (B, H, W, C).
        qkv_weight: (3 C, C).
        qkv_bias: (3 C,).
        out_weight: (C, C).
        out_bias: (C,).
        bias: (heads, w w, w w), query by key.
        size: Side of a window w.
        shift: How far the map is rolled.
        norm_weight: Of the norm that comes before, (C,), or None.
        norm_bias: (C,) or None.
        eps: Of the norm.
        residual: Whether `x` is added at the end.

    Returns:
        Map (B, H, W, C).
    """
    batch, height, width, dim = x.shape
    rows = _rows(x)
    out = x.new_empty(len(rows) + 1, dim)  # the last is for padding
    norm = PieceNorm(norm_weight, norm_bias, eps)
    layout = WindowLayout(height, width, size, shift)
    for piece in _pieces(batch, layout, bias):
        taken = piece.take(rows)
        qkv = linear(piece.pad(norm(taken)), qkv_weight, qkv_bias)
        attended = F.scaled_dot_product_attention(
            *_by_head(qkv, 3, bias), attn_mask=piece.bias[None]
        )
        attended = _rows(attended.transpose(1, 2).flatten(2))
        attended = linear(attended, out_weight, out_bias)
        if residual:
            attended += taken
        out.index_copy_(0, piece.pixels, attended)
    return out[:-1].view(x.shape)


@operator('window_self_attention_backward')
def _window_self_attention_backward(
    grad: Tensor,
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    bias: Tensor,
    size: int,
    shift: int,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, height, width, dim = x.shape
    rows, grad = _rows(x), _rows(grad)
    x_grad = x.new_empty(len(rows) + 1, dim)
    qkv_weight_grad = torch.zeros_like(qkv_weight)
    qkv_bias_grad = torch.zeros_like(qkv_bias)
    out_weight_grad = torch.zeros_like(out_weight)
    bias_grad = torch.zeros_like(bias)
    norm = PieceNorm(norm_weight, norm_bias, eps)
    norm.start_gradients(x)
    layout = WindowLayout(height, width, size, shift)
    for piece in _pieces(batch, layout, bias):
        normed = piece.pad(norm(piece.take(rows)))
        out_grad = piece.pad(piece.take(grad))
        qkv = linear(normed, qkv_weight, qkv_bias)
        q, k, v = _by_head(qkv, 3, bias)
        scale = q.shape[-1] ** -0.5
        q.mul_(scale)
        weights = attention_weights(q, k, piece.bias)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        out_weight_grad.addmm_(out_grad.mT, _rows(attended))
        (grads,) = _by_head(linear(out_grad, out_weight.mT), 1, bias)
        qkv_grad = torch.empty_like(qkv)
        q_grad, k_grad, v_grad = _by_head(qkv_grad, 3, bias)
        v_grad.copy_(weights.mT @ grads)
        scores_grad = score_gradients(grads, v, weights)
        bias_grad += scores_grad.sum(0)
        k_grad.copy_(scores_grad.mT @ q)
        torch.mul(scores_grad @ k, scale, out=q_grad)
        qkv_weight_grad.addmm_(qkv_grad.mT, normed)
        qkv_bias_grad += qkv_grad.sum(0)
        normed_grad = piece.pad(linear(qkv_grad, qkv_weight.mT))
        taken_grad = norm.backward(normed_grad)
        if residual:
            taken_grad += out_grad
        x_grad.index_copy_(0, piece.pixels, taken_grad)
    return (
        x_grad[:-1].view(x.shape),
        qkv_weight_grad,
        qkv_bias_grad,
        out_weight_grad,
        grad.sum(0),
        bias_grad,
        *norm.gradients,
    )


def _empty(x, *_):
    return x.new_empty(x.shape)


def _empty_backward(
    grad, x, qkv_weight, qkv_bias, out_weight, bias, size, shift, *norm
):
    weights = qkv_weight, qkv_bias, out_weight, out_weight[0], bias
    inputs = x, *weights, *norm[:2]
    return tuple(x.new_empty(0 if t is None else t.shape) for t in inputs)


def _save(ctx, inputs, output) -> None:
    *tensors, out_bias, bias, ctx.size, ctx.shift = inputs[:8]
    *norm, ctx.eps, ctx.residual = inputs[8:]
    ctx.save_for_backward(*tensors, bias, *norm)


def _differentiate(backward, ctx, grad):
    *tensors, norm_weight, norm_bias = ctx.saved_tensors
    layer = norm_weight, norm_bias
    grads = backward(
        grad, *tensors, ctx.size, ctx.shift, *layer, ctx.eps, ctx.residual
    )
    *grads, weight_grad, bias_grad = of_inputs(grads, layer)
    return *grads, None, None, weight_grad, bias_grad, None, None


connect(
    window_self_attention,
    _window_self_attention_backward,
    empty=_empty,
    empty_backward=_empty_backward,
    save=_save,
    differentiate=_differentiate,
)
