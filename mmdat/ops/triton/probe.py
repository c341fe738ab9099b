# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Tests the Triton kernels on a small case before they are used.

Triton compiles on the user's machine. The C compiler or the Python headers may
be missing, Triton may not support the GPU or the driver, or the compiled code
may be wrong. So each kind of kernel runs once per process, device, type and
width of head on a small case, forward and backward, and is compared with plain
PyTorch. A failure is remembered, logged in one sentence, and makes the backend
decline.
"""

import logging
import math
import operator
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from .. import reference
from ..position_bias import TableBias
from ..sampling import sample_plainly
from .common import INTERPRETED, declines

# Largest allowed errors of outputs and gradients, relative to the largest
# value. Wrong code exceeds all of them. Correct results differ by the order of
# additions, and by TF32 if it is allowed.
TOLERANCES = {
    torch.float32: 2e-2,
    torch.float16: 4e-2,
    torch.bfloat16: 1e-1,
}

# Pairs of a result of the kernels and the result of plain PyTorch.
Pairs = list[tuple[Tensor, Tensor]]
Result = TypeVar('Result')


class Case(NamedTuple):
    """A separately compiled variant of a kernel, tested separately.

    Attributes:
        op: Name of the op.
        device: As text.
        dtype: Type of q, k and v.
        settings: Constants of the kernels, such as channels of a head. They
            are plain integers even if a compiler uses symbolic sizes.
        training: Whether the gradients are tested too.
    """

    op: str
    device: str
    dtype: torch.dtype
    settings: tuple[int, ...]
    training: bool


# Reason against each tested case; None if it passed.
_found: dict[Case, str | None] = {}
_lock = threading.Lock()


def forget() -> None:
    """Forgets all results, so that each case is tested again when needed."""
    _found.clear()


def failure(case: Case, run: Callable[[Case], Pairs]) -> str | None:
    """Returns why the kernels of a case cannot be used, or None.

    Args:
        case: The case.
        run: Runs the case and returns pairs of a result of the kernels and the
            result of plain PyTorch.
    """
    trained = case._replace(training=True)
    for known in (case, trained):
        if known in _found and (known == case or _found[known] is None):
            return _found[known]
    if _is_capturing(case.device):
        # CUDA forbids compiling and copying while a graph is captured.
        return 'its kernels were not tried before this graph was captured.'
    with _lock:
        if case not in _found:
            try:
                _found[case] = _in_own_thread(_compare, case, run)
            except torch.cuda.OutOfMemoryError:
                return 'there was no memory to try its kernels.'
            if _found[case] is not None:
                print_log(
                    f'The Triton kernels of {case.op} are not used on '
                    f'{case.device} in {case.dtype}, plain PyTorch is: '
                    f"{_found[case]} backend='triton' shows the whole error.",
                    logger='current',
                    level=logging.WARNING,
                )
    return _found[case]


# A compiler calls this while it traces, and treats the result as a constant.
failure._dynamo_marked_constant = True  # as torch's assume_constant_result


def _is_capturing(device: str) -> bool:
    return device.startswith('cuda') and (
        torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    )


def _in_own_thread(function: Callable[..., Result], *args) -> Result:
    """Calls a function in a new thread, without the caller's modes.

    Modes are local to threads: autocast, inference mode, and the modes of
    compilers, recorders and fake tensors.
    """
    with ThreadPoolExecutor(1, 'mmdat-probe') as pool:
        return pool.submit(function, *args).result()


def _compare(case: Case, run: Callable[[Case], Pairs]) -> str | None:
    try:
        pairs = run(case)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a driver or a launch
        lines = (line.strip(' .!') for line in str(error).splitlines())
        line = next(filter(None, lines), 'no message')
        return f'{type(error).__name__}: {line[:300]}.'
    allowed = TOLERANCES[case.dtype]
    for got, wanted in pairs:
        error = (got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)
        if not error <= allowed:  # also NaN
            return (
                f'on a small case they are off by {error:.2g} of the largest '
                f'value, where {allowed:g} is allowed.'
            )
    return None


def _results(
    op: Callable[..., Tensor], leaves: list[Tensor], training: bool
) -> list[Tensor]:
    """Returns output and, in training, gradients; in float64 on the CPU."""
    leaves = [x.detach().requires_grad_(training) for x in leaves]
    out = op(*leaves)
    results = [out]
    if training:
        # Different for each element, and the same in each run.
        slope = _numbers(*out.shape, device='cpu', seed=9)
        results += torch.autograd.grad(out, leaves, slope.to(out))
    return [x.detach().cpu().double() for x in results]


def _numbers(*shape: int, device: str, seed: int) -> Tensor:
    """Returns float64 numbers in [-1, 1] without using a random state."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    numbers = ((count * 0.61803 + seed * 0.317) * 7).sin()
    return numbers.view(shape).to(device)


def deformable_failure(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: TableBias | None,
    scale: float,
    dropout: float,
) -> str | None:
    """Returns why the kernels of deformable attention fail here, or None.

    The arguments are those of the backend. Triton's interpreter, a tool for
    developers, compiles nothing, so nothing is tested there.
    """
    if bias is None or INTERPRETED:
        return None
    case = Case(
        'deformable_attention',
        str(q.device),
        q.dtype,
        (operator.index(q.shape[-1]),),
        torch.is_grad_enabled(),
    )
    return failure(case, _run_deformable)


def _run_deformable(case: Case) -> Pairs:
    from .deformable import deformable_attention

    (dim,) = case.settings
    (height, width), keys, heads = (9, 11), (5, 7), 2

    def run(op, q, k, v, table, points_yx):
        y, x = (
            torch.linspace(-1, 1, n).to(points_yx) for n in (height, width)
        )
        bias = TableBias(table, y, x, points_yx)
        return op(q, k, v, bias, dim**-0.5, 0.0)

    shapes = [(1, heads, math.prod(n), dim) for n in ((height, width), keys)]
    return _side_by_side(
        case,
        partial(run, deformable_attention),
        partial(run, reference.deformable_attention),
        [shapes[0], shapes[1], shapes[1], (heads, 5, 9), (1, 1, *keys, 2)],
    )


def neighborhood_failure(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    kernel_size: int,
    scale: float,
    dropout: float,
) -> str | None:
    """Does the same as ``deformable_failure``, for neighbourhood attention."""
    if INTERPRETED:
        return None
    case = Case(
        'neighborhood_attention',
        str(q.device),
        q.dtype,
        (operator.index(q.shape[-1]), operator.index(kernel_size)),
        torch.is_grad_enabled(),
    )
    return failure(case, _run_neighborhood)


def _run_neighborhood(case: Case) -> Pairs:
    from .neighborhood import neighborhood_attention

    dim, size = case.settings
    heads = 2

    def run(op, *tensors):
        return op(*tensors, size, dim**-0.5, 0.0)

    map_shape = 1, size + 2, size + 9, heads, dim
    return _side_by_side(
        case,
        partial(run, neighborhood_attention),
        partial(run, reference.neighborhood_attention),
        [*[map_shape] * 3, (heads, 2 * size - 1, 2 * size - 1)],
    )


def sampling_failure(x: Tensor, points_yx: Tensor) -> str | None:
    """Does the same as ``deformable_failure``, for sampling at points."""
    if INTERPRETED:
        return None
    case = Case(
        'sample_at_points', str(x.device), x.dtype, (), torch.is_grad_enabled()
    )
    return failure(case, _run_sampling)


def _run_sampling(case: Case) -> Pairs:
    from .sampling import sample_at_points

    shapes = [(1, 7, 9, 80), (1, 2, 3, 5, 2)]
    return _side_by_side(case, sample_at_points, sample_plainly, shapes, 1)


def layer_norm_failure(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> str | None:
    """Does the same as ``deformable_failure``, for LayerNorm in `dtype`."""
    if INTERPRETED:
        return None
    case = Case(
        'layer_norm',
        str(x.device),
        dtype,
        (operator.index(x.shape[-1]),),
        torch.is_grad_enabled(),
    )
    return failure(case, _run_layer_norm)


def _run_layer_norm(case: Case) -> Pairs:
    from .layer_norm import layer_norm

    (channels,) = case.settings

    def plain(x, weight, bias):
        return F.layer_norm(x, (channels,), weight, bias)

    def fused(*tensors):
        return layer_norm(*tensors, 1e-5, case.dtype)

    shapes = [(70, channels), (channels,), (channels,)]
    return _side_by_side(case, fused, plain, shapes, 0)


def _side_by_side(
    case: Case,
    fused: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    shapes: list[tuple[int, ...]],
    low: int = 3,
) -> Pairs:
    """Runs the kernels, and plain PyTorch in float64 on the CPU.

    Args:
        case: The tested case.
        fused: Runs the kernels.
        plain: Runs plain PyTorch.
        shapes: Shapes of the leaves.
        low: Number of leaves that have the type of the case; the rest are
            float32.
    """
    types = [case.dtype] * low + [torch.float32] * (len(shapes) - low)
    leaves = [
        _numbers(*shape, device=case.device, seed=i).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, types, strict=True))
    ]
    with torch.set_grad_enabled(case.training):
        got = _results(fused, leaves, case.training)
        wanted = _results(
            plain, [x.cpu().double() for x in leaves], case.training
        )
    return list(zip(got, wanted, strict=True))


def report() -> dict[str, str]:
    """Returns, per GPU, the types in which each kernel works (bug reports)."""
    found = {}
    if not torch.cuda.device_count():
        return {'Triton': f'not used: {declines(torch.empty(0))}'}
    for index in range(torch.cuda.device_count()):
        device = f'cuda:{index}'
        said = []
        for op, settings, run in (
            ('deformable_attention', (32,), _run_deformable),
            ('neighborhood_attention', (32, 7), _run_neighborhood),
            ('sample_at_points', (), _run_sampling),
            ('layer_norm', (96,), _run_layer_norm),
        ):
            for dtype in TOLERANCES:
                reason = declines(torch.empty(0, dtype=dtype, device=device))
                if reason is None:
                    case = Case(op, device, dtype, settings, True)
                    reason = failure(case, run)
                said.append(
                    f'{op} in {str(dtype)[6:]} '
                    f'{"works" if reason is None else f"does not: {reason}"}'
                )
        found[f'Triton on {device}'] = '; '.join(said)
    return found
