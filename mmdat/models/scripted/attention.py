# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The kinds of attention for TorchScript."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import (
    FullAttention,
    NeighborhoodAttention,
    PyramidAttention,
    QueryAttention,
    SlideAttention,
    WindowAttention,
)
from .blocks import pad_to_multiple
from .forms import form_of, refuse, scriptable

form_of(SlideAttention, QueryAttention)(refuse)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rate: float, training: bool
) -> Tensor:
    """Computes softmax(q k^T / sqrt(d) + bias) v over the last two axes."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    weights = F.dropout(scores.softmax(-1), rate, training)
    return weights.to(v.dtype) @ v


@form_of(WindowAttention)
class _Window(nn.Module):
    def __init__(self, attn: WindowAttention) -> None:
        super().__init__()
        self.proj_qkv, self.proj_out = attn.proj_qkv, attn.proj_out
        self.proj_drop = attn.proj_drop
        self.relative_position_bias_table = attn.relative_position_bias_table
        self.heads, self.rate = attn.num_heads, float(attn.attn_drop_rate)
        self.size, self.shift = attn.window_size, attn.shift

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        size, shift = self.size, self.shift
        x = pad_to_multiple(x, size)
        rows, columns = x.shape[1] // size, x.shape[2] // size
        bias = self.bias()
        if shift > 0:
            x = x.roll([-shift, -shift], [1, 2])
            bias = bias + self.apart(rows, columns, x)[:, None]
        qkv = self.proj_qkv(self.cut(x))  # B, n, w w, 3 C
        qkv = qkv.unflatten(-1, [3, self.heads, -1])
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        out = attend(q, k, v, bias, self.rate, self.training)
        out = self.proj_out(out.transpose(2, 3).flatten(3))  # B, n, w w, C
        out = out.reshape(batch, rows, columns, size, size, -1)
        x = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if shift > 0:
            x = x.roll([shift, shift], [1, 2])
        return self.proj_drop(x[:, :height, :width])

    def cut(self, x: Tensor) -> Tensor:
        """Maps (B, rows w, columns w, C) to (B, rows columns, w w, C)."""
        size = self.size
        x = x.unflatten(1, [-1, size]).unflatten(3, [-1, size])
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def bias(self) -> Tensor:
        """Returns the bias of all pairs of a window, (heads, w w, w w)."""
        table, size = self.relative_position_bias_table, self.size
        n = torch.arange(size, device=table.device)
        move = n[:, None] - n + size - 1
        index = move[:, None, :, None] * (2 * size - 1) + move[None, :, None]
        bias = table[index.flatten()].unflatten(0, [size * size, size * size])
        return bias.permute(2, 0, 1)

    def apart(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Returns -inf for pairs that only the roll puts into one window."""
        size, shift = self.size, self.shift
        y = torch.arange(rows * size, device=like.device)
        x = torch.arange(columns * size, device=like.device)
        part_y = (y >= (rows - 1) * size).int() + (y >= rows * size - shift)
        part_x = (x >= (columns - 1) * size).int() + (
            x >= columns * size - shift
        )
        region = part_y[:, None] + 3 * part_x
        region = self.cut(region[None, :, :, None])[0, :, :, 0]
        mask = torch.zeros(
            region.shape[0], size * size, size * size, dtype=like.dtype
        )
        mask = mask.to(like.device)
        apart = region[:, :, None] != region[:, None, :]
        return mask.masked_fill(apart, float('-inf'))


@form_of(NeighborhoodAttention)
class _Neighborhood(nn.Module):
    def __init__(self, attn: NeighborhoodAttention) -> None:
        super().__init__()
        self.qkv, self.proj = attn.qkv, attn.proj
        self.proj_drop, self.rpb = attn.proj_drop, attn.rpb
        self.heads, self.kernel = attn.num_heads, attn.kernel_size
        self.rate = float(attn.attn_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        below = max(self.kernel - height, 0)
        right = max(self.kernel - width, 0)
        x = F.pad(x, (0, 0, 0, right, 0, below))
        qkv = self.qkv(x).unflatten(-1, [3, self.heads, -1])
        q, k, v = qkv.unbind(3)  # B, H, W, heads, d
        key_y, move_y = self.neighbours(x.shape[1], x)
        key_x, move_x = self.neighbours(x.shape[2], x)
        rows, columns = key_y[:, None, :, None], key_x[None, :, None]
        bias = self.rpb[:, move_y[:, None, :, None], move_x[None, :, None]]
        bias = bias.permute(1, 2, 0, 3, 4).flatten(-2)[..., None, :]
        k = k[:, rows, columns].flatten(3, 4).transpose(3, 4)
        v = v[:, rows, columns].flatten(3, 4).transpose(3, 4)
        out = attend(q[..., None, :], k, v, bias, self.rate, self.training)
        out = out.squeeze(-2)[:, :height, :width].flatten(-2)
        return self.proj_drop(self.proj(out))

    def neighbours(self, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys of queries along an axis (n, K), and displacements."""
        size = self.kernel
        query = torch.arange(n, device=like.device)[:, None]
        first = (query - size // 2).clamp(0, n - size)
        key = first + torch.arange(size, device=like.device)
        return key, key - query + size - 1


@form_of(FullAttention)
class _Full(nn.Module):
    def __init__(self, attn: FullAttention) -> None:
        super().__init__()
        self.qkv, self.proj = attn.qkv, attn.proj
        self.proj_drop, self.heads = attn.proj_drop, attn.num_heads
        self.rate = float(attn.attn_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, [3, self.heads, -1])
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        zero = torch.zeros([1], dtype=x.dtype, device=x.device)
        out = attend(q, k, v, zero, self.rate, self.training)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(x.shape)))


@form_of(PyramidAttention)
class _Pyramid(nn.Module):
    def __init__(self, attn: PyramidAttention) -> None:
        super().__init__()
        self.q, self.kv, self.proj = attn.q, attn.kv, attn.proj
        self.proj_drop, self.proj_ds = attn.proj_drop, scriptable(attn.proj_ds)
        self.heads, self.rate = attn.num_heads, float(attn.attn_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).flatten(1, 2).unflatten(-1, [self.heads, -1])
        kv = self.kv(self.proj_ds(x)).flatten(1, 2)
        k, v = kv.unflatten(-1, [2, self.heads, -1]).unbind(2)
        zero = torch.zeros([1], dtype=x.dtype, device=x.device)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = attend(q, k, v, zero, self.rate, self.training)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(x.shape)))
