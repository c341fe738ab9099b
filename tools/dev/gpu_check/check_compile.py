# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""``torch.compile`` without graph breaks, at two sizes of images."""

import time
from functools import partial

import torch
from common import (
    BF16,
    DEVICE,
    DRY,
    Rows,
    error,
    guarded,
    milliseconds,
    model,
)

TABLE = 'torch.compile(fullgraph=True), inference, bfloat16 autocast'
SIZES = [(2, 3, 800, 1344), (2, 3, 768, 1152)]
if DRY:
    SIZES = [(1, 3, 64, 64), (1, 3, 64, 96)]
# Fused code rounds fewer intermediate results to bfloat16.
LIMIT = 3e-2


def compare(arch: str) -> None:
    """Adds a row for each size; the second makes the sizes dynamic."""
    backbone = model(arch).to(DEVICE).eval()
    # A dry run compiles the second size like the first: dynamic sizes take a
    # minute and show nothing about a GPU.
    how = dict(backend='eager', dynamic=False) if DRY else {}
    compiled = torch.compile(backbone, fullgraph=True, **how)
    for size in SIZES:
        what = f'{arch}, {"x".join(map(str, size))}'
        with guarded(TABLE, what), torch.no_grad():
            images = torch.randn(size, device=DEVICE)
            with torch.autocast(DEVICE, BF16):
                start = time.perf_counter()
                got = compiled(images)
                took = time.perf_counter() - start
                off = max(map(error, got, backbone(images)))
                Rows.add(
                    TABLE,
                    what,
                    off < LIMIT,
                    f'error {off:.1e}',
                    error=off,
                    first_call_s=took,
                    eager_ms=milliseconds(partial(backbone, images)),
                    compiled_ms=milliseconds(partial(compiled, images)),
                )


def main(_) -> None:
    """Compiles DAT-T only, because each size takes about a minute."""
    with guarded(TABLE, 'dat_t'):
        compare('dat_t')
