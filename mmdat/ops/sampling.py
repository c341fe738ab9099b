# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reading a feature map at continuous positions."""

from torch import Tensor

from .dispatch import wanted
from .plain_sampling import sample_plainly
from .triton import probe
from .triton import sampling as triton_sampling
from .triton.common import yields


def sample_at_points(x: Tensor, points_yx: Tensor) -> Tensor:
    """Reads each channel group of a map at the points of that group.

    Bilinear, zeros outside the map, ``align_corners=True`` (DAT, eq. 4).

    Args:
        x: Map (B, H, W, C), of any floating type.
        points_yx: Positions (B, groups, Hk, Wk, 2) in [-1, 1], float32 or
            wider.

    Returns:
        Samples (B, Hk, Wk, C) in the type of `x`.
    """
    if _triton_declines(x, points_yx) is None:
        return triton_sampling.sample_at_points(x, points_yx)
    return sample_plainly(x, points_yx)


def _triton_declines(x: Tensor, points_yx: Tensor) -> str | None:
    """Returns why the kernel is passed over, or None."""
    if reason := triton_sampling.not_supported(x, points_yx):
        return reason
    name = wanted()
    if name not in (None, 'triton'):
        return f'{name} was requested.'
    return yields() or (None if name else probe.sampling_failure(x, points_yx))
