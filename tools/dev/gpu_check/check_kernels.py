# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Times each kernel, fused attention without a bias, and lower bounds.

Times are device times with a cold cache. A floor is a lower bound, the larger
of two times: the multiply-adds at the rate of a large matrix product on this
GPU, and the bytes at the rate of a large copy, with each operand read once and
each result written once. A backward pass needs at least five products. The
third bound is the target of the project: instructions per score, at the rate
at which the multiprocessors can issue them.
"""

import math

import torch
import torch.nn.functional as F
from cases import SAMPLERS, TIMED, Deformable, Sampling
from check_card import nvidia_smi
from check_ops import triton
from common import BF16, DEVICE, DRY, Rows, guarded, milliseconds, slopes_like
from torch import Tensor

# Warp instructions per score at 32 channels per head: forward, backward.
TARGET_INSTRUCTIONS = 1.5, 1.5 + 3.0
ISSUES_A_CLOCK = 4  # of a multiprocessor, compute capability 7.0 to 10.0
PRODUCTS = 2, 5  # matrix products of a forward and a backward pass
MATRIX_SIDE = 64 if DRY else 8192
COPIED_BYTES = 1000 if DRY else 2**29


class Rates:
    """Measured rates of this GPU.

    Attributes:
        flops: Operations per second of a large bfloat16 matrix product.
        bytes: Bytes per second of a large copy, read and written.
        issues: Warp instructions per second at the highest clock; NaN if the
            driver does not report the clock.
    """

    def __init__(self) -> None:
        side = MATRIX_SIDE
        a, b = (
            torch.randn(side, side, device=DEVICE, dtype=BF16)
            for _ in range(2)
        )
        self.flops = 2 * side**3 / milliseconds(lambda: a @ b) * 1e3
        source = torch.ones(COPIED_BYTES, dtype=torch.int8, device=DEVICE)
        target = torch.empty_like(source)
        took = milliseconds(lambda: target.copy_(source))
        self.bytes = 2 * source.numel() / took * 1e3
        self.issues = math.nan
        if not DRY and (clock := nvidia_smi('clocks.max.sm')).isdecimal():
            card = torch.cuda.get_device_properties(0)
            units = card.multi_processor_count * ISSUES_A_CLOCK
            self.issues = units * int(clock) * 1e6

    def say(self) -> None:
        """Adds the rates to a table."""
        table = 'Rates of this card'
        for what, value, unit in (
            ('bfloat16 matrix product', self.flops / 1e12, 'TFLOP/s'),
            ('copy, read and written', self.bytes / 1e12, 'TB/s'),
            ('warp instructions, calculated', self.issues / 1e12, '10^12/s'),
        ):
            Rows.add(table, what, None, rate=value, unit=unit)

    def floors(self, case, tensors: list[Tensor]) -> list[float]:
        """Returns lower bounds in ms of a forward and a backward pass.

        Args:
            case: A case of ``cases``.
            tensors: Output and operands; a backward pass reads them and the
                gradient of the output, and writes those of the operands.
        """
        size = sum(x.numel() * x.element_size() for x in tensors)
        out = tensors[0].numel() * tensors[0].element_size()
        moved = size, 2 * size
        if isinstance(case, Sampling):  # operands read, results written
            moved = size, 2 * size - out
        flops = [0, 0]
        if not isinstance(case, Sampling):
            flops = [2 * n * case.pairs * case.dim for n in PRODUCTS]
        return [
            1e3 * max(f / self.flops, m / self.bytes)
            for f, m in zip(flops, moved)
        ]


def both(op, leaves, needs=None) -> tuple[float, float]:
    """Returns the milliseconds of a forward and of a backward pass.

    Args:
        op: A function of tensors.
        leaves: Its operands.
        needs: Indices of the operands that need gradients; None for all.
    """
    leaves = [x.detach() for x in leaves]
    with torch.no_grad():
        forward = milliseconds(lambda: op(*leaves))
    wanted = [
        x.requires_grad_()
        for i, x in enumerate(leaves)
        if needs is None or i in needs
    ]
    out = op(*leaves)
    slope = slopes_like([out])[0]
    backward = milliseconds(
        lambda: torch.autograd.grad(out, wanted, slope, retain_graph=True)
    )
    return forward, backward


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes fused attention on the same operands, without a bias."""
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v)


def attention(
    rates: Rates, name: str, case, dtype: torch.dtype, backend: str | None
) -> None:
    """Adds a row for an attention."""
    op, leaves = case.make()
    leaves = [
        x.to(dtype if i < 3 else torch.float32).contiguous()
        for i, x in enumerate(leaves)
    ]
    floors = rates.floors(case, [leaves[0], *leaves])
    forward, backward = both(lambda *x: op(*x, backend=backend), leaves)
    cells = dict(
        blocks=case.blocks,
        pairs_M=case.pairs / 1e6,
        forward_ms=forward,
        forward_floor=floors[0],
        backward_ms=backward,
        backward_floor=floors[1],
    )
    for word, aim in zip(('forward', 'backward'), TARGET_INSTRUCTIONS):
        cells[f'{word} target'] = 1e3 * case.pairs * aim / rates.issues
    without = range(3)
    if isinstance(case, Deformable):
        _, cells['backward, no table gradient'] = both(
            lambda *x: op(*x, backend=backend), leaves, (0, 1, 2, 4)
        )
        cells['SDPA forward'], cells['SDPA backward'] = both(sdpa, leaves[:3])
    elif backend != 'reference':  # fused attention would see all keys
        cells['plain forward'], cells['plain backward'] = both(
            lambda *x: op(*x, backend='reference'), leaves
        )
    _, cells['backward, no bias gradient'] = both(
        lambda *x: op(*x, backend=backend), leaves, without
    )
    short = str(dtype).removeprefix('torch.')
    label = f'{name}, {short}, {backend or "chosen"}'
    Rows.add('Attentions alone, batch 2', label, None, **cells)


def sampling(rates: Rates, name: str, case: Sampling) -> None:
    """Adds a row for each sampler."""
    _, leaves = case.make()
    leaves = [leaves[0].to(BF16).contiguous(), leaves[1].float()]
    for way, sampler in SAMPLERS.items():
        out = sampler(*leaves)
        floors = rates.floors(case, [out, *leaves])
        forward, backward = both(sampler, leaves)
        Rows.add(
            'Sampling alone, batch 2, bfloat16',
            f'{name}, {way}',
            None,
            blocks=case.blocks,
            forward_ms=forward,
            forward_floor=floors[0],
            backward_ms=backward,
            backward_floor=floors[1],
        )


def main(_) -> None:
    """Times all ops."""
    rates = Rates()
    rates.say()
    for name, case in TIMED.items():
        with guarded('Kernels', name):
            if isinstance(case, Sampling):
                sampling(rates, name, case)
            else:
                attention(rates, name, case, BF16, triton())
    # The reference and other types, for the slowest ops only.
    first = next(iter(TIMED))
    others = [(BF16, 'reference')]
    if not DRY:
        others += [(torch.float16, triton()), (torch.float32, triton())]
    for dtype, backend in others:
        proves = backend != 'reference'  # it may need much memory
        with guarded('Kernels', f'{first} {dtype}', proves):
            attention(rates, first, TIMED[first], dtype, backend)
