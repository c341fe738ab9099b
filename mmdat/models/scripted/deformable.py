# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Deformable attention for TorchScript."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import DeformableAttention
from .attention import attend
from .forms import form_of, refuse, scriptable


@form_of(DeformableAttention)
def _with_bias(attn: DeformableAttention) -> nn.Module:
    """Returns the form with the module's position bias."""
    return _FORMS.get(attn.position_bias, refuse)(attn)


def _axis(n: int, first: int, span: int, like: Tensor) -> Tensor:
    """See ``mmdat.ops.coordinates._axis``."""
    numbers = torch.arange(n, dtype=like.dtype, device=like.device)
    if span == 0:
        return torch.zeros_like(numbers)
    return (numbers + first / 2) / (span / 2)


class _Deformable(nn.Module):
    """Deformable attention without position bias; subclasses add one."""

    def __init__(self, attn: DeformableAttention) -> None:
        super().__init__()
        self.proj_q, self.proj_k = attn.proj_q, attn.proj_k
        self.proj_v, self.proj_out = attn.proj_v, attn.proj_out
        self.proj_drop = attn.proj_drop
        self.conv_offset = scriptable(attn.conv_offset)
        self.rpe_table = attn.rpe_table
        if isinstance(attn.rpe_table, nn.Module):
            self.rpe_table = scriptable(attn.rpe_table)
        self.heads, self.groups = attn.num_heads, attn.offset_groups
        self.stride, self.rate = attn.stride, float(attn.attn_drop_rate)
        self.offset_range = float(attn.offset_range)
        self.is_v1 = attn.convention == 'dat'

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        q = self.proj_q(x)
        points_yx = self.points(q)  # B, g, Hk, Wk, 2
        if self.conv_offset is not None:
            sampled = self.sample(x, points_yx)
        else:
            sampled = F.avg_pool2d(
                x.permute(0, 3, 1, 2),
                [self.stride] * 2,
                [self.stride] * 2,
                ceil_mode=True,
            ).permute(0, 2, 3, 1)
        bias = self.bias(height, width, points_yx)
        out = attend(
            self.split(q),
            self.split(self.proj_k(sampled)),
            self.split(self.proj_v(sampled)),
            bias,
            self.rate,
            self.training,
        )
        out = out.transpose(1, 2).flatten(2)
        out = out.reshape(batch, height, width, -1)
        return self.proj_drop(self.proj_out(self.add(out, q)))

    def split(self, x: Tensor) -> Tensor:
        """Maps (B, H, W, C) to (B, heads, H W, d)."""
        x = x.flatten(1, 2).unflatten(-1, [self.heads, -1])
        return x.transpose(1, 2)

    def points(self, q: Tensor) -> Tensor:
        batch, height, width = q.shape[0], q.shape[1], q.shape[2]
        if self.conv_offset is None:
            hk, wk = -(-height // self.stride), -(-width // self.stride)
            grid = self.reference(hk, wk, q)
            return grid.expand(batch, self.groups, -1, -1, -1)
        q = q.unflatten(-1, [self.groups, -1]).permute(0, 3, 1, 2, 4)
        move = self.conv_offset(q.flatten(0, 1))
        hk, wk = move.shape[1], move.shape[2]
        move = move.unflatten(0, [batch, self.groups])
        grid = self.reference(hk, wk, move)
        if self.offset_range < 0:
            return (grid + move).clamp(-1, 1)
        cells = torch.ones_like(move)
        cells[..., 0] = self.cell(hk)
        cells[..., 1] = self.cell(wk)
        return grid + move.tanh() * cells

    def cell(self, n: int) -> float:
        if self.is_v1:
            return self.offset_range / n
        return self.offset_range / (n - 1) if n > 1 else 0.0

    def reference(self, hk: int, wk: int, like: Tensor) -> Tensor:
        if self.is_v1:
            y, x = _axis(hk, 1 - hk, hk, like), _axis(wk, 1 - wk, wk, like)
        else:
            y = _axis(hk, 2 - hk, hk - 1, like)
            x = _axis(wk, 2 - wk, wk - 1, like)
        return torch.stack(torch.meshgrid([y, x], indexing='ij'), -1)

    def queries(self, height: int, width: int, like: Tensor) -> Tensor:
        """Returns the positions of the queries (H W, 2)."""
        less = 0 if self.is_v1 else 1
        y = _axis(height, 1 - height, height - less, like)
        x = _axis(width, 1 - width, width - less, like)
        both = torch.stack(torch.meshgrid([y, x], indexing='ij'), -1)
        return both.flatten(0, 1)

    def moves(self, height: int, width: int, points_yx: Tensor) -> Tensor:
        """Returns displacements, query minus key (B g, H W, Ns, 2)."""
        keys_yx = points_yx.flatten(2, 3).flatten(0, 1)
        queries_yx = self.queries(height, width, points_yx)
        return queries_yx[:, None] - keys_yx[:, None]

    def sample(self, x: Tensor, points_yx: Tensor) -> Tensor:
        """Samples (B, H, W, C) at the points: (B, Hk, Wk, C)."""
        maps = x.unflatten(-1, [self.groups, -1]).permute(0, 3, 4, 1, 2)
        maps, grid_xy = maps.flatten(0, 1), points_yx.flip([-1]).flatten(0, 1)
        out = self.read(maps.to(grid_xy.dtype), grid_xy).to(x.dtype)
        out = out.unflatten(0, [x.shape[0], self.groups])
        return out.permute(0, 3, 4, 1, 2).flatten(3)

    def read(self, maps: Tensor, grid_xy: Tensor) -> Tensor:
        return F.grid_sample(maps, grid_xy, 'bilinear', 'zeros', True)

    def bias(self, height: int, width: int, points_yx: Tensor) -> Tensor:
        return torch.zeros([1], dtype=points_yx.dtype, device=points_yx.device)

    def add(self, out: Tensor, q: Tensor) -> Tensor:
        """Adds a branch parallel to the attention."""
        return out


class _DeformableTable(_Deformable):
    def bias(self, height: int, width: int, points_yx: Tensor) -> Tensor:
        moves_xy = self.moves(height, width, points_yx).flip([-1]) / 2
        table = self.rpe_table.to(moves_xy.dtype)
        tables = table.unflatten(0, [self.groups, -1])
        tables = tables.repeat(points_yx.shape[0], 1, 1, 1)
        bias = self.read(tables, moves_xy)  # B g, h / g, H W, Ns
        return bias.reshape(-1, self.heads, bias.shape[2], bias.shape[3])


class _DeformableLog(_Deformable):
    def bias(self, height: int, width: int, points_yx: Tensor) -> Tensor:
        far = 4 * self.moves(height, width, points_yx)
        bias = self.rpe_table(far.sign() * torch.log2(1 + far.abs()) / 3)
        bias = bias.permute(0, 3, 1, 2)
        return bias.reshape(-1, self.heads, bias.shape[2], bias.shape[3])


class _DeformableConv(_Deformable):
    def add(self, out: Tensor, q: Tensor) -> Tensor:
        return out + self.rpe_table(q)


_FORMS = {
    'table': _DeformableTable,
    'log_continuous': _DeformableLog,
    'depthwise_conv': _DeformableConv,
    'none': _Deformable,
}
