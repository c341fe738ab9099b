# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Window attention, one call of fused attention for windows that look alike.

Windows share their bias and differ only at the seam of a rolled map, so that
nothing of the size of the map times the size of a window is ever built.
"""

import torch
from torch import Tensor

from ..windows import WindowLayout, WindowPart
from . import small_bias


def _sides(layout: WindowLayout, seam: bool, like: Tensor) -> Tensor:
    """Which end of the map each row of a window is from, (w,)."""
    index = torch.arange(layout.size, device=like.device)
    return (index >= layout.size - layout.shift).long() * seam


def mask_seam(bias: Tensor, layout: WindowLayout, part: WindowPart) -> Tensor:
    """Hides from each other what is from different ends of the map.

    Args:
        bias: (heads, w w, w w).
        layout: How the map is cut.
        part: Windows of it.

    Returns:
        The bias of these windows, as `bias`.
    """
    if not (part.seam_y or part.seam_x):
        return bias
    side_y = _sides(layout, part.seam_y, bias)
    side_x = _sides(layout, part.seam_x, bias)
    side = (side_y[:, None] + 2 * side_x).flatten()
    return bias.masked_fill(side[:, None] != side, float('-inf'))


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.window_attention`."""
    bias = bias.to(q.dtype)
    outs = []
    for part in layout.parts():
        mask = mask_seam(bias, layout, part)
        sets = (
            x[part.windows].flatten(0, 1).transpose(1, 2) for x in (q, k, v)
        )
        out = small_bias.attention(*sets, mask, scale, dropout)
        outs.append(out.transpose(1, 2))  # n B, w w, heads, d
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).view(q.shape)
