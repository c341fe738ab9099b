# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Keeping coordinates exact under mixed precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .custom_op import HAS_OPERATORS


def at_least_float32(x: Tensor) -> Tensor:
    """Returns `x` in float32, or unchanged if its type is wider.

    bfloat16 has 8 significant bits: next to 1 its steps are 1/256, several
    pixels on a map 1000 wide. Every sampling position is converted here first.
    """
    return x if x.dtype == torch.float64 else x.float()


def autocast_off(x: Tensor) -> AbstractContextManager:
    """A context without autocast for operations on `x`."""
    if x.device.type == 'meta':  # has no autocast
        return nullcontext()
    return torch.autocast(device_type=x.device.type, enabled=False)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast casts `x` to before a product, None for none."""
    kind = x.device.type
    if (
        HAS_OPERATORS  # and with them autocast that names its device
        and kind != 'meta'  # has no autocast
        and torch.is_autocast_enabled(kind)
        and x.dtype in (torch.float32, torch.get_autocast_dtype(kind))
    ):
        return torch.get_autocast_dtype(kind)
    return None


def product_type(x: Tensor) -> torch.dtype:
    """The type that layers read `x` in: autocast's where it is on.

    To cast once what several layers and kernels read, or what is copied.
    """
    return autocast_type(x) or x.dtype


def must_repeat_exactly(x: Tensor) -> bool:
    """Whether ``grid_sample`` must not be differentiated on `x`.

    On a GPU its backward pass adds in random order, so PyTorch refuses it
    under ``torch.use_deterministic_algorithms``.
    """
    return (
        x.device.type != 'cpu'
        and torch.are_deterministic_algorithms_enabled()
        and torch.is_grad_enabled()
    )
