# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Attentions alone: the ops of mmdat, and plain attention to hold against."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import deformable_attention, neighborhood_attention
from ...ops.coordinates import deformed_points_yx, query_axis
from ...ops.position_bias import TableBias
from ...utils.errors import UserError
from .cases import AttentionSizes, Setting, Subject

PLAIN = 'sdpa'
OPS = {
    'deformable': 'deformable_attention',
    'neighborhood': 'neighborhood_attention',
}

# Of stages of the tiny models at 800 x 1344: (H, W) of the queries, the rest.
USUAL_SIZES = {
    'deformable': (
        # Stage 3 of DAT-T, whose keys are as many as its queries.
        ((50, 84), AttentionSizes('deformable', 12, 3, (50, 84), (14, 14))),
        # Stage 1 of DAT-T++.
        (
            (200, 336),
            AttentionSizes('deformable', 2, 1, (25, 42), (56, 56), 'dat_pp'),
        ),
    ),
    'neighborhood': (
        ((200, 336), AttentionSizes('neighborhood', 2)),
        ((200, 336), AttentionSizes('neighborhood', 3)),
    ),
}


@dataclass(frozen=True)
class AttentionCall:
    """An attention and what goes in.

    Attributes:
        run: Takes the inputs.
        inputs: Tensors that may get gradients.
    """

    run: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def check_op(name: str) -> None:
    """Raises UserError for an attention that is not known."""
    if name not in OPS:
        raise UserError(
            f'An attention must be one of {", ".join(OPS)}; got {name!r}.'
        )


def build_attention(
    subject: Subject,
    setting: Setting,
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> AttentionCall:
    """Random inputs of an attention, of the sizes the setting says.

    Args:
        subject: Named ``deformable_attention``, ``neighborhood_attention`` or
            ``sdpa``, which is fused attention on the same queries, keys and
            values, without bias.
        setting: With sizes of an attention.
        device: Where the tensors lie.
        dtype: Of queries, keys and values; coordinates and tables are
            float32.
    """
    sizes = setting.attention
    if sizes.kind == 'neighborhood':
        return _neighborhood(subject, setting, device, dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    grid = (setting.batch, setting.height, setting.width)
    keys = (setting.batch, *sizes.key_size)
    q, k, v = (
        normal(*where, sizes.heads, sizes.head_dim).to(device, dtype)
        for where in (grid, keys, keys)
    )
    if subject.name == PLAIN:
        return AttentionCall(_plain, (q, k, v))
    height, width = sizes.map_size
    table = normal(sizes.heads, 2 * height - 1, 2 * width - 1)
    offset_yx = normal(setting.batch, sizes.groups, *sizes.key_size, 2)
    if sizes.convention == 'dat':
        points_yx = deformed_points_yx(offset_yx, 'dat', 2)
    else:  # about as far, there being no range to bound it
        offset_yx = offset_yx / torch.tensor(sizes.key_size)
        points_yx = deformed_points_yx(offset_yx, 'dat_pp', -1)
    table, points_yx = table.to(device), points_yx.to(device)
    query_y, query_x = (
        query_axis(n, sizes.convention, points_yx)
        for n in (setting.height, setting.width)
    )

    def run(
        q: Tensor, k: Tensor, v: Tensor, table: Tensor, points_yx: Tensor
    ) -> Tensor:
        bias = TableBias(table, query_y, query_x, points_yx)
        return deformable_attention(q, k, v, bias, backend=subject.backend)

    return AttentionCall(run, (q, k, v, table, points_yx))


def _neighborhood(
    subject: Subject, setting: Setting, device: str, dtype: torch.dtype
) -> AttentionCall:
    sizes = setting.attention
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(
        (setting.batch, setting.height, setting.width)
        + (3, sizes.heads, sizes.head_dim),
        generator=generator,
    ).to(device, dtype)
    side = 2 * sizes.kernel_size - 1
    table = torch.randn((sizes.heads, side, side), generator=generator)

    def run(qkv: Tensor, table: Tensor) -> Tensor:
        return neighborhood_attention(
            *qkv.unbind(3), table, sizes.kernel_size, backend=subject.backend
        )

    return AttentionCall(run, (qkv, table.to(device)))


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)
