# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is handed to kernels beside tensors, so that few are compiled.

Triton compiles a kernel anew for arguments that are 1, or are multiples of 16
and were not before. Strides are told apart in that way, since memory is read
faster where they are known to be multiples.
"""

from torch import Tensor

from .common import INTERPRETED, float32_precision

# Products of three parts pay from this many channels on.
MIN_SPLIT_DIM = 32


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Strides of all tensors; those that nobody uses do not vary."""
    return tuple(
        stride if size > 1 else int(axis == x.dim() - 1)
        for x in tensors
        for axis, (size, stride) in enumerate(zip(x.shape, x.stride()))
    )


def with_rows(x: Tensor) -> Tensor:
    """`x`, its last axis contiguous: gradients may be expanded numbers."""
    return x if x.stride(-1) == 1 else x.contiguous()


def ceil_div(a: int, b: int) -> int:
    """`a` divided by `b`, rounded up."""
    return -(-a // b)


def has_tf32() -> bool:
    """Whether the current GPU multiplies TF32, from 8.0 on."""
    if INTERPRETED:
        return True
    from triton.runtime import driver

    return driver.active.get_current_target().arch >= 80


def dot_precision(wide: int) -> str:
    """How kernels multiply float32, by PyTorch's own setting for matmul.

    ``'tf32x3'`` splits each number into two of TF32, which leaves errors of
    some 2^-21, and runs on tensor cores; ``'ieee'`` does not.

    Args:
        wide: Channels of a head, padded.
    """
    if float32_precision() == 'tf32':
        return 'tf32'
    return 'tf32x3' if wide >= MIN_SPLIT_DIM and has_tf32() else 'ieee'
