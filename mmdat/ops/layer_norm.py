# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whether a LayerNorm may run as the kernel that casts as it writes."""

import torch
from torch import Tensor

from .dispatch import wanted
from .triton import layer_norm as triton_layer_norm
from .triton import probe
from .triton.common import yields


def layer_norm_declines(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> str | None:
    """Returns why the kernel cannot write a result in `dtype`, or None."""
    if reason := triton_layer_norm.not_supported(x, weight, bias, dtype):
        return reason
    name = wanted()
    if name not in (None, 'triton'):
        return f'{name} is asked for.'
    return yields() or (None if name else probe.layer_norm_failure(x, dtype))
