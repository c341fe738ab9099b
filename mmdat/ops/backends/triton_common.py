# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the Triton backends share: when they decline, and how they launch.

Triton is not imported here, nor anywhere before a kernel is launched.
"""

import contextlib
import os
from importlib.util import find_spec

import torch
from torch import Tensor

from .operators import HAS_OPERATORS

HAS_TRITON = find_spec('triton') is not None
# Triton decides once, when a kernel is defined, whether to interpret it.
INTERPRETED = os.environ.get('TRITON_INTERPRET', '').lower() in (
    '1',
    'on',
    'true',
    'yes',
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128


def declines(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> str | None:
    """Why no Triton kernel can run on these tensors, or None."""
    if not HAS_TRITON:
        return 'Triton is not installed.'
    if not HAS_OPERATORS:
        return f'PyTorch 2.4 or newer is needed; this is {torch.__version__}.'
    if not INTERPRETED and not (q.is_cuda and torch.version.cuda):
        return f'Tensors must be on an NVIDIA GPU; got {q.device}.'
    if q.is_cuda and torch.cuda.get_device_properties(q.device).major < 8:
        return 'The GPU must be of compute capability 8.0 or higher.'
    if dropout > 0:
        return f'Attention weights cannot be dropped; got dropout={dropout}.'
    if not (q.dtype == k.dtype == v.dtype and q.dtype in DTYPES):
        return (
            'q, k and v must be all float16, bfloat16 or float32; got '
            f'{q.dtype}, {k.dtype}, {v.dtype}.'
        )
    if q.shape[-1] > MAX_HEAD_DIM:
        return (
            f'A head has at most {MAX_HEAD_DIM} channels; got {q.shape[-1]}.'
        )
    return None


def widened(dim: int) -> int:
    """The block a head of `dim` channels is padded to."""
    return max(16, 1 << (dim - 1).bit_length())


def float32_precision() -> str:
    """How float32 is multiplied: by PyTorch's own setting for matmul."""
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, 'fp32_precision', None)  # since PyTorch 2.9
    tf32 = matmul.allow_tf32 if setting is None else setting == 'tf32'
    return 'tf32' if tf32 else 'ieee'


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Launches in this context go to the GPU of `x`."""
    if x.is_cuda:
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
