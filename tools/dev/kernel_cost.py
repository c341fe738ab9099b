# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Prints what the Triton kernels cost, without a GPU.

Each kernel is compiled for a compute capability that need not be there, and
its machine code is read: how many instructions a warp issues for each score
(a pair of query and key) in the loop, registers of a thread, bytes of shared
memory, and instructions in loops that spill registers to memory. What an
instruction takes, and how long memory is waited for, is not in these figures.

``python tools/dev/kernel_cost.py --capability 80 90 --dtype bfloat16``
"""

import argparse
import math
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from mmdat.ops.position_bias import TableBias
from mmdat.ops.triton import (
    deformable,
    layer_norm,
    neighborhood,
    sampling,
)

CAPABILITIES = (75, 80, 86, 89, 90)
DTYPES = ('bfloat16', 'float16', 'float32')
COLUMNS = '{:<46}{:>3}{:>10}{:>14}{:>11}{:>13}{:>8}'
HEADER = (
    'kernel',
    'sm',
    'dtype',
    'instr./score',
    'registers',
    'shared',
    'spills',
)


class Launch(NamedTuple):
    """A kernel that would have been launched.

    Attributes:
        name: Its name, with that of its module.
        constants: Its keyword arguments.
        kernel: What Triton compiled.
    """

    name: str
    constants: dict
    kernel: object


class Cost(NamedTuple):
    """What a kernel costs; 0 instructions a score if it has no scores."""

    instructions_per_score: float
    registers: int
    shared_bytes: int
    spills: int


@contextmanager
def absent_gpu(capability: int) -> Iterator[None]:
    """Triton takes a GPU for the current one that need not be there.

    Args:
        capability: Ten times the compute capability.
    """
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    class Absent(CudaDriver):
        def __init__(self):
            self.get_current_device = lambda: capability  # a key of caches
            self.get_current_stream = lambda device: 0
            self.get_current_target = lambda: GPUTarget('cuda', capability, 32)

    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
        mock.patch.object(driver, '_active', Absent()),
    ):
        yield


@contextmanager
def compiled_for(capability: int) -> Iterator[list[Launch]]:
    """Compiles for a GPU that need not be there, instead of launching.

    Args:
        capability: Ten times the compute capability.

    Yields:
        A list that gets every kernel that would have been launched.
    """
    from triton.runtime.jit import JITFunction

    launches, compile_kernel = [], JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = compile_kernel(self, *args, grid=grid, warmup=True, **kwargs)
        name = f'{self.__module__.rpartition(".")[2]}.{self.__name__}'
        launches.append(Launch(name, kwargs, kernel))
        return kernel

    with absent_gpu(capability), mock.patch.object(JITFunction, 'run', run):
        yield launches


def _nvidia(program: str, *arguments: str) -> str:
    """What a program that Triton brings along prints."""
    import triton

    home = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
    done = subprocess.run(
        [str(home / program), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def machine_code(cubin: bytes) -> list[str]:
    """Labels (``.L_x_1:``) and instructions, in order."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        text = _nvidia('nvdisasm', '-c', file.name)
    lines = []
    for line in text.splitlines():
        if found := re.match(r'\s*(\.L_x_\d+):', line):
            lines.append(found[1] + ':')
        elif found := re.match(r'\s*/\*[0-9a-f]{4,}\*/\s+(.+?)\s*;', line):
            lines.append(found[1])
    return lines


def loops(code: list[str], outermost: bool = False) -> list[list[str]]:
    """The instructions of every loop that holds no other loop.

    Args:
        code: See ``machine_code``.
        outermost: Of every loop that is in no other loop instead.
    """
    labels = {x[:-1]: i for i, x in enumerate(code) if x.endswith(':')}
    spans = set()
    for i, line in enumerate(code):
        target = re.search(r'BRA.*?`\((\.L_x_\d+)\)', line)
        if target and labels.get(target[1], i) < i:
            spans.add((labels[target[1]], i))

    def holds(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] <= b[0] and b[1] <= a[1]

    chosen = [
        a
        for a in sorted(spans)
        if not any(holds(b, a) if outermost else holds(a, b) for b in spans)
    ]
    return [
        [x for x in code[start : stop + 1] if not x.endswith(':')]
        for start, stop in chosen
    ]


def scores_of(constants: dict) -> int:
    """Pairs of query and key that a turn of a kernel's loop looks at."""
    sides = (
        ('BLOCK_Q', 'BLOCK_K'),
        ('TILE_Y', 'TILE_X', 'STEP_Y', 'STEP_X'),
        ('TILE_Y', 'TILE_X', 'BLOCK'),
    )
    for names in sides:
        if all(name in constants for name in names):
            return math.prod(constants[name] for name in names)
    return 0  # not a kernel of attention


def cost_of(launch: Launch) -> Cost:
    """Reads the machine code of a kernel."""
    cubin = launch.kernel.asm['cubin']
    code = machine_code(cubin)
    longest = max(map(len, loops(code)), default=0)
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        usage = _nvidia('cuobjdump', '-res-usage', file.name)
    warps = launch.kernel.metadata.num_warps
    scores = scores_of(launch.constants)
    return Cost(
        longest * warps / scores if scores else 0.0,
        int(re.search(r'REG:(\d+)', usage)[1]),
        launch.kernel.metadata.shared,
        sum(
            bool(re.search(r'\b(STL|LDL)\b', line))
            for loop in loops(code, outermost=True)
            for line in loop
        ),
    )


def call_deformable(dtype: torch.dtype, dim: int = 32) -> None:
    """Deformable attention, forward and backward, on a tiny input."""
    heads, queries, keys, table = 2, (16, 16), (8, 8), 27
    q = torch.ones(1, heads, 256, dim, dtype=dtype)
    k, v = torch.ones(2, 1, heads, 64, dim, dtype=dtype)
    bias = TableBias(
        torch.ones(heads, table, table),
        *(torch.zeros(n) for n in queries),
        torch.zeros(1, 1, *keys, 2),
    )
    leaves = q, k, v, bias.table, bias.points_yx
    for x in leaves:
        x.requires_grad_()
    out = deformable.deformable_attention(q, k, v, bias, 1.0, 0.0)
    torch.autograd.grad(out.sum(), leaves)


def call_neighborhood(dtype: torch.dtype, dim: int = 32) -> None:
    """Neighbourhood attention, forward and backward, on a tiny input."""
    heads, kernel = 2, 7
    q, k, v = torch.ones(3, 1, 16, 16, heads, dim, dtype=dtype)
    table = torch.ones(heads, 2 * kernel - 1, 2 * kernel - 1)
    leaves = q, k, v, table
    for x in leaves:
        x.requires_grad_()
    out = neighborhood.neighborhood_attention(*leaves, kernel, 1.0, 0.0)
    torch.autograd.grad(out.sum(), leaves)


def call_sampling(dtype: torch.dtype, dim: int = 32) -> None:
    """Sampling, forward and backward, on a tiny input."""
    x = torch.ones(1, 16, 16, 2 * dim, dtype=dtype, requires_grad=True)
    points_yx = torch.zeros(1, 2, 4, 4, 2, requires_grad=True)
    out = sampling.sample_at_points(x, points_yx)
    torch.autograd.grad(out.sum(), (x, points_yx))


def call_layer_norm(dtype: torch.dtype, dim: int = 32) -> None:
    """LayerNorm of float32, written in `dtype`."""
    weight, bias = torch.ones(2, 3 * dim)
    x = torch.ones(64, 3 * dim)
    layer_norm.layer_norm(x, weight, bias, 1e-5, dtype)


CALLS = {
    'deformable': call_deformable,
    'neighborhood': call_neighborhood,
    'sampling': call_sampling,
    'layer_norm': call_layer_norm,
}


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--capability',
        type=int,
        nargs='+',
        default=[80, 90],
        help=f'compute capabilities times ten, of {CAPABILITIES}',
    )
    parser.add_argument(
        '--dtype', nargs='+', choices=DTYPES, default=['bfloat16']
    )
    parser.add_argument(
        '--op', nargs='+', choices=list(CALLS), default=list(CALLS)
    )
    parser.add_argument(
        '--dim', type=int, default=32, help='channels of a head'
    )
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Prints a line for each kernel, type and compute capability."""
    options = parse_args(args)
    print(_nvidia('ptxas', '--version').splitlines()[-2])
    print(COLUMNS.format(*HEADER))
    for capability in options.capability:
        for dtype in options.dtype:
            for op in options.op:
                with compiled_for(capability) as launches:
                    CALLS[op](getattr(torch, dtype), options.dim)
                first = {launch.name: launch for launch in launches}
                for launch in first.values():
                    cost = cost_of(launch)
                    print(
                        COLUMNS.format(
                            launch.name,
                            capability,
                            dtype,
                            f'{cost.instructions_per_score:.2f}'
                            if cost.instructions_per_score
                            else '-',
                            *cost[1:],
                        ),
                        flush=True,
                    )


if __name__ == '__main__':
    main()
