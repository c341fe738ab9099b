# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares each op with float64, forward and backward.

The error is the relative root mean square error of the output and of each
gradient. It may be up to three times the error of plain PyTorch on the same
numbers in the same types, which accounts for rounding.
"""

import math
from importlib.util import find_spec

import torch
from cases import ODD, REAL, SAMPLERS, Deformable, Op, Sampling
from common import DRY, Rows, error, guarded, no_tf32, poison, slopes_like
from torch import Tensor

FLOAT64 = torch.float64
SMALL = 5e-6  # float32 sums in a different order
# Allowed difference of a repeated result, because atomics add in any order.
REPEATED = 1e-5


def run(
    op: Op,
    leaves: list[Tensor],
    backend: str | None,
    dtype: torch.dtype,
    others: torch.dtype = torch.float32,
    of_sum: bool = False,
) -> list[Tensor]:
    """Returns output and gradients.

    Args:
        op: See ``cases``.
        leaves: Its operands, in any type.
        backend: Name of a backend; None lets mmdat choose.
        dtype: Type of queries, keys, values and maps.
        others: Type of tables and points.
        of_sum: Whether to differentiate the sum, so that the gradient of the
            output is one expanded number.
    """
    wide = 1 if len(leaves) == 2 else 3
    leaves = [
        x.to(dtype if i < wide else others).detach().requires_grad_()
        for i, x in enumerate(leaves)
    ]
    poison()
    out = op(*leaves, backend=backend)
    slope = torch.ones_like(out) if of_sum else slopes_like([out])[0]
    if of_sum:
        slope = slope.flatten()[:1].view((1,) * out.ndim).expand(out.shape)
    grads = torch.autograd.grad(out, leaves, slope)
    for x, grad in zip(leaves, grads):
        assert grad.dtype == x.dtype and grad.shape == x.shape
    return [x.detach() for x in (out, *grads)]


def rounded(leaves: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Rounds operands, so that `dtype` and float64 hold the same numbers."""
    wide = 1 if len(leaves) == 2 else 3
    return [
        x.to(dtype if i < wide else torch.float32).double()
        for i, x in enumerate(leaves)
    ]


def prove(table: str, name: str, case, backend: str | None, dtype) -> None:
    """Adds a row for one case: its error, and whether results repeat."""
    op, leaves = case.make()
    leaves = rounded(leaves, dtype)
    exact = run(op, leaves, 'reference', FLOAT64, FLOAT64)
    got = run(op, leaves, backend, dtype)
    plain = run(op, leaves, 'reference', dtype)
    errors = dict(zip(case.names, map(error, got, exact)))
    limits = [3 * error(x, y) + SMALL for x, y in zip(plain, exact)]
    why = ''
    for (what, off), limit in zip(errors.items(), limits):
        if not off <= limit:  # NaN never passes
            why += f'error of {what} {off:.1e}, limit {limit:.1e}; '
    again = run(op, leaves, backend, dtype)
    moved = max(map(error, again, got))
    if not moved <= REPEATED:
        why += f'a second run differs by {moved:.1e}'
    worst = max(a / b for a, b in zip(errors.values(), limits))
    Rows.add(
        table,
        name,
        not why,
        why,
        **errors,
        repeats=moved,
        share_of_limit=worst,
    )


def backends_of(case) -> list[str | None]:
    """Returns the backends to test: Triton; for sampling also the default."""
    if not isinstance(case, Sampling):
        return [triton()]
    return [None, *(['triton'] if 'triton' in SAMPLERS else [])]


def triton() -> str | None:
    """Returns 'triton', or None in a dry run without Triton."""
    return None if DRY and find_spec('triton') is None else 'triton'


def gradient_of_a_sum(table: str) -> None:
    """Tests a gradient whose strides are all zero."""
    for name in ('deformable odd', 'neighborhood odd', 'sampling odd'):
        op, leaves = ODD[name].make()
        leaves = rounded(leaves, torch.float32)
        backend = backends_of(ODD[name])[-1]
        got = run(op, leaves, backend, torch.float32, of_sum=True)
        exact = run(op, leaves, 'reference', FLOAT64, FLOAT64, of_sum=True)
        # The gradients of q and k are zero except for rounding.
        off = max(
            ((a - b).norm() / max(1, b.norm())).item()
            for a, b in zip(got, exact)
        )
        Rows.add(table, name, off < 2e-5, f'error {off:.1e}', error=off)


def tf32(table: str) -> None:
    """Tests that errors with TF32 allowed are those of TF32."""
    no_tf32(allowed=True)
    try:
        name = 'deformable odd'
        op, leaves = ODD[name].make()
        leaves = rounded(leaves, torch.float32)
        exact = run(op, leaves, 'reference', FLOAT64, FLOAT64)
        got = run(op, leaves, triton(), torch.float32)
        off = max(map(error, got, exact))
        Rows.add(table, name, off < 5e-3, f'error {off:.1e}', error=off)
    finally:
        no_tf32()


def not_numbers(table: str) -> None:
    """Tests that a NaN point makes only the output of its image NaN."""
    for value in (math.nan, -1e30):
        case: Deformable = ODD['deformable odd']
        op, leaves = case.make()
        leaves = rounded(leaves, torch.float32)
        leaves[4][1, 0, 1, 2, 1] = value
        out = run(op, leaves, triton(), torch.float32)[0].isnan()
        spoilt = bool(out[1].any())
        ok = not out[0].any() and spoilt == math.isnan(value)
        why = (
            f'NaN in the other image: {bool(out[0].any())}, in this image: '
            f'{spoilt}'
        )
        Rows.add(table, f'a point at {value}', ok, why, nan=int(out.sum()))


def main(dtypes: list[torch.dtype]) -> None:
    """Tests all cases in these types."""
    no_tf32()
    for dtype in dtypes:
        short = str(dtype).removeprefix('torch.')
        table = f'Errors in {short}, compared with float64'
        for name, case in {**REAL, **ODD}.items():
            for backend in backends_of(case):
                label = f'{name}, {backend or "chosen"}'
                with guarded(table, label):
                    torch.manual_seed(0)
                    prove(table, label, case, backend, dtype)
    if torch.float32 in dtypes:
        for title, proof in (
            ('The gradient of a sum', gradient_of_a_sum),
            ('With TF32 allowed', tf32),
            ('Points that are not finite', not_numbers),
        ):
            with guarded(title, title):
                proof(title)
