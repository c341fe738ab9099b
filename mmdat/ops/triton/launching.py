# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Kernel arguments other than tensors, chosen so that few kernels compile.

Triton compiles another kernel when an argument is 1 or becomes a multiple of
16. Strides keep this distinction, because a kernel reads memory faster when it
knows that strides are multiples.
"""

from torch import Tensor

from .common import INTERPRETED, float32_precision

# Products in three parts are faster from this many channels.
MIN_SPLIT_DIM = 32


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Returns the strides of all tensors; unused strides are constant."""
    return tuple(
        stride if size > 1 else int(axis == x.dim() - 1)
        for x in tensors
        for axis, (size, stride) in enumerate(zip(x.shape, x.stride()))
    )


def with_rows(x: Tensor) -> Tensor:
    """Returns `x` with a contiguous last axis; gradients may be expanded."""
    return x if x.stride(-1) == 1 else x.contiguous()


def ceil_div(a: int, b: int) -> int:
    """Returns `a` divided by `b`, rounded up."""
    return -(-a // b)


def has_tf32() -> bool:
    """Returns whether the current GPU has TF32 (8.0 or higher)."""
    if INTERPRETED:
        return True
    from triton.runtime import driver

    return driver.active.get_current_target().arch >= 80


def dot_precision(wide: int) -> str:
    """Returns how kernels multiply float32, from PyTorch's matmul setting.

    ``'tf32x3'`` splits each number into two TF32 numbers and uses tensor
    cores, with errors of about 2^-21; ``'ieee'`` does neither.

    Args:
        wide: Padded channels of a head.
    """
    if float32_precision() == 'tf32':
        return 'tf32'
    return 'tf32x3' if wide >= MIN_SPLIT_DIM and has_tf32() else 'ieee'
