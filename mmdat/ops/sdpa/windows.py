# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Window attention, one call of fused attention for windows that look alike.

Windows share their bias and differ only at the seam of a rolled map, so that
nothing of the size of the map times the size of a window is ever built.
"""

import torch
from torch import Tensor

from ..constants import constant
from ..custom_op import is_exporting
from ..windows import WindowLayout, WindowPart
from . import any_size
from . import shared_bias as small_bias


@constant
def _apart(
    size: int, shift: int, seam_y: bool, seam_x: bool, device: torch.device
) -> Tensor:
    """Which pairs of a window are from different ends, (w w, w w)."""
    index = torch.arange(size, device=device)
    side_y, side_x = (
        (index >= (size - shift if seam else size)).long()
        for seam in (seam_y, seam_x)
    )
    side = (side_y[:, None] + 2 * side_x).flatten()
    return side[:, None] != side


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
    apart = _apart(
        layout.size, layout.shift, part.seam_y, part.seam_x, bias.device
    )
    return bias.masked_fill(apart, float('-inf'))


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    dropout: float,
) -> Tensor:
    """See ``mmdat.ops.window_attention``."""
    if is_exporting():  # windows of a graph for all sizes are in no parts
        return any_size.window_attention(q, k, v, bias, layout, scale, dropout)
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
