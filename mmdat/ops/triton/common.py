# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Shared code of the Triton backends: capability checks and launches.

Triton is imported only when a kernel is launched.
"""

import contextlib
import os
from importlib.util import find_spec

import torch
from torch import Tensor

from ..custom_op import HAS_OPERATORS, is_exporting

HAS_TRITON = find_spec('triton') is not None
# Triton decides when a kernel is defined whether to interpret it.
INTERPRETED = os.environ.get('TRITON_INTERPRET', '').lower() in (
    '1',
    'on',
    'true',
    'yes',
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128
# Largest size of a grid's second axis: images times heads or groups.
MAX_PAIRS = 65535
# Products in three parts are faster from this many channels.
MIN_SPLIT_DIM = 32


def declines(x: Tensor) -> str | None:
    """Returns why no Triton kernel supports the device and type of `x`.

    Returns None if kernels support them. Module `probe` then tests whether
    they work on this GPU.
    """
    if not HAS_TRITON:
        return 'Triton is not installed.'
    if not HAS_OPERATORS:
        return f'PyTorch 2.4 or newer is needed; this is {torch.__version__}.'
    if is_exporting():
        return 'an exported graph needs plain operations; set backend=None.'
    if not INTERPRETED and not (x.is_cuda and torch.version.cuda):
        on = 'an AMD GPU' if x.is_cuda else x.device
        return f'Tensors must be on an NVIDIA GPU; got {on}.'
    return declines_type(x, x.dtype)


def declines_type(x: Tensor, dtype: torch.dtype) -> str | None:
    """Returns why no kernel computes in `dtype` on this device, or None."""
    if dtype not in DTYPES:
        return f'Types are float16, bfloat16 and float32; got {dtype}.'
    if dtype == torch.bfloat16 and x.is_cuda:
        properties = torch.cuda.get_device_properties(x.device)
        if properties.major < 8:
            return (
                'bfloat16 needs a GPU of compute capability 8.0 or higher; '
                f'got {properties.major}.{properties.minor}.'
            )
    return None


def declines_shape(x: Tensor, pairs: int, *others: Tensor) -> str | None:
    """Returns why no kernel can run on tensors of this shape, or None.

    Args:
        x: The first tensor.
        pairs: Number of pairs of image and head.
        *others: The other tensors, which must be on the device of `x`.
    """
    for other in others:
        if other.device != x.device:
            return (
                'Tensors must be on one device; got '
                f'{x.device} and {other.device}.'
            )
    if pairs > MAX_PAIRS:
        return f'Images times heads must be at most {MAX_PAIRS}; got {pairs}.'
    if x.numel() == 0 or any(other.numel() == 0 for other in others):
        return 'Tensors must have elements.'
    return None


def not_supported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    dropout: float,
    *others: Tensor,
) -> str | None:
    """Returns why no Triton attention can run on these tensors, or None.

    Args:
        q: Queries (B, ...).
        k: Keys.
        v: Values.
        heads: Number of heads.
        dropout: Probability of dropping an attention weight.
        *others: Other tensors that the kernels read.
    """
    reason = declines(q)
    if reason := reason or declines_shape(
        q, q.shape[0] * heads, k, v, *others
    ):
        return reason
    if dropout > 0:
        return f'Attention weights cannot be dropped; got dropout={dropout}.'
    if not q.dtype == k.dtype == v.dtype:
        return (
            'q, k and v must be of one type; got '
            f'{q.dtype}, {k.dtype}, {v.dtype}.'
        )
    if q.shape[-1] > MAX_HEAD_DIM:
        return (
            f'A head has at most {MAX_HEAD_DIM} channels; got {q.shape[-1]}.'
        )
    return None


def yields(*_) -> str | None:
    """Returns why plain operations should run instead of kernels, or None."""
    if is_exporting():
        return 'an exported graph needs plain operations.'
    return None


def widened(dim: int) -> int:
    """Returns the block size to which a head of `dim` channels is padded."""
    return max(16, 1 << (dim - 1).bit_length())


def float32_precision() -> str:
    """Returns PyTorch's setting for the precision of float32 products."""
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, 'fp32_precision', None)  # since PyTorch 2.9
    tf32 = matmul.allow_tf32 if setting is None else setting == 'tf32'
    return 'tf32' if tf32 else 'ieee'


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Returns a context in which kernels launch on the GPU of `x`."""
    if x.is_cuda:
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Returns the strides of all tensors; unused strides are constant.

    Triton compiles another kernel when an argument is 1 or becomes a multiple
    of 16. Strides keep this distinction, because a kernel reads memory faster
    when it knows that strides are multiples.
    """
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
