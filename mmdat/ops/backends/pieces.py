# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""When layers that follow each other run for some pixels at a time, on a CPU.

What lies between the layers is then read while it is in the cache, is never
there as a whole, and is made again in the backward pass instead of kept.
"""

import torch
from torch import Tensor

from .operators import HAS_OPERATORS, is_recorded, leaves_the_house


def declines(x: Tensor, weight: Tensor) -> str | None:
    """Why layers on a map do not run in pieces, or None.

    Args:
        x: The map.
        weight: One of the weights.
    """
    if not HAS_OPERATORS:
        return f'torch 2.4 or newer is needed; this is {torch.__version__}.'
    if x.device.type != 'cpu':
        return f'it runs on a CPU, x is on {x.device.type}.'
    if (
        x.dtype not in (torch.float32, torch.float64)
        or x.dtype != weight.dtype
    ):
        return (
            f'it takes float32 or float64 for all; x is {x.dtype}, the weight '
            f'{weight.dtype}.'
        )
    if torch.is_autocast_enabled('cpu'):
        return 'it does not know autocast.'
    if leaves_the_house():
        return 'a graph for others should show the layers.'
    if is_recorded():
        return 'who counts operations should see those of the layers.'
    return None
