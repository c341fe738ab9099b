# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Sampling of a channels-last map at points, in one Triton kernel.

The map needs no copy; PyTorch's ``grid_sample`` needs it channels-first and in
float32. Tested in Triton's interpreter and compiled for GPUs; not yet timed on
a GPU.
"""

import torch
from torch import Tensor

from ..custom_op import is_transformed, operator, recompute_in_backward
from . import common as triton_common
from .common import ceil_div, on_device, strides

# Points and channels of a block.
BLOCKS = dict(BLOCK=16, CHANNELS=64, num_warps=4)


def not_supported(x: Tensor, points_yx: Tensor) -> str | None:
    """Returns why ``sample_at_points`` cannot run here, or None."""
    reason = triton_common.declines(x)
    pairs = x.shape[0] * points_yx.shape[1]
    if reason := reason or triton_common.declines_shape(x, pairs, points_yx):
        return reason
    if is_transformed():
        return 'The kernels have first derivatives in reverse mode only.'
    if points_yx.dtype != torch.float32:
        return f'Points must be float32; got {points_yx.dtype}.'
    if (
        torch.are_deterministic_algorithms_enabled()
        and torch.is_grad_enabled()
        and x.requires_grad
    ):
        return (
            'The gradient of the map is summed in varying order; '
            'deterministic algorithms are asked for.'
        )
    return None


def sample_at_points(x: Tensor, points_yx: Tensor) -> Tensor:
    """See ``mmdat.ops.sample_at_points``."""
    return _sample(x, points_yx)


def _sizes(x: Tensor, points: Tensor) -> tuple[int, ...]:
    """Returns groups, points, height, width and channels of a group."""
    groups = points.shape[1]
    number = points.shape[2] * points.shape[3]
    return groups, number, *x.shape[1:3], x.shape[3] // groups


def _grid(x: Tensor, points: Tensor) -> tuple[int, int]:
    groups, number, *_ = _sizes(x, points)
    return ceil_div(number, BLOCKS['BLOCK']), x.shape[0] * groups


@operator('sample_at_points')
def _sample(x: Tensor, points: Tensor) -> Tensor:
    """Samples x (B, H, W, C) at (B, groups, Hk, Wk, 2): (B, Hk, Wk, C)."""
    from .sampling_kernels import forward_kernel

    points, out = points.contiguous(), _fake(x, points)
    with on_device(x):
        forward_kernel[_grid(x, points)](
            x, points, out, *strides(x), *_sizes(x, points), **BLOCKS
        )
    return out


@operator('sample_at_points_backward')
def _sample_backward(
    grad: Tensor,
    x: Tensor,
    points: Tensor,
    needs_map: bool,
    needs_points: bool,
) -> tuple[Tensor, Tensor]:
    """Computes the gradients of map and points; zeros if not needed."""
    from .sampling_kernels import backward_kernel

    points, grad = points.contiguous(), grad.contiguous()
    dx = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    dpoints = torch.zeros_like(points)
    with on_device(x):
        backward_kernel[_grid(x, points)](
            grad, x, points, dx, dpoints, *strides(x), *_sizes(x, points),
            **BLOCKS, NEEDS_MAP=needs_map, NEEDS_POINTS=needs_points,
        )  # fmt: skip
    return dx.to(x.dtype), dpoints


def _fake(x, points):
    """Returns empty outputs of the shapes of ``_sample``, for tracing."""
    return x.new_empty(x.shape[0], *points.shape[2:4], x.shape[3])


recompute_in_backward(_sample, _sample_backward, fake=_fake, told_needs=True)
