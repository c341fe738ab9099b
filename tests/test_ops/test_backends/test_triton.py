# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdat.ops.backends import (
    triton_common,
    triton_deformable,
    triton_neighborhood,
)
from mmdat.ops.position_bias import DenseBias, TableBias

CASES = Path(__file__).with_name('triton_cases.py')
needs_triton = pytest.mark.skipif(
    not (triton_common.HAS_TRITON and triton_common.HAS_OPERATORS),
    reason='needs Triton and PyTorch 2.4',
)


def run_python(*args, **environment):
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


# ------------------------------------------------------------------- results


def run_cases(interpret):
    done = run_python(
        *('-m', 'pytest', '-q', '-p', 'no:cacheprovider', str(CASES)),
        TRITON_INTERPRET=interpret,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert int(re.search(r'(\d+) passed', summary)[1]) >= 20, summary
    assert 'skipped' not in summary


@needs_triton
@pytest.mark.slow
def test_cases_in_the_interpreter():
    run_cases('1')


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cases_on_a_gpu():
    run_cases('0')


# ----------------------------------------------------------------- compiling


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Compiles for a GPU that need not be there, instead of launching.

    Returns:
        A function that sets the compute capability, and a list which gets
        every kernel that would have been launched.
    """
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Absent(CudaDriver):
        def __init__(self, capability):
            self.get_current_device = lambda: capability  # a key of caches
            self.get_current_stream = lambda device: 0
            self.get_current_target = lambda: GPUTarget('cuda', capability, 32)

    kernels, compile_kernel = [], JITFunction.run

    def run(self, *args, warmup, **kwargs):
        kernel = compile_kernel(self, *args, warmup=True, **kwargs)
        kernels.append(kernel)
        return kernel

    def target(capability):
        monkeypatch.setattr(driver, '_active', Absent(capability))

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(JITFunction, 'run', run)
    return target, kernels


# Sizes of 1 are compiled into a kernel as constants, multiples of 16 are
# told apart, so that both have to be tried.
SIZES = {
    'ones': dict(size=(1, 1), keys=(1, 1), heads=1, dim=1, kernel=1, table=1),
    'many': dict(
        size=(9, 16), keys=(4, 4), heads=4, dim=32, kernel=7, table=5
    ),
    'wide': dict(
        size=(8, 8), keys=(4, 5), heads=2, dim=128, kernel=3, table=3
    ),
}


def forward_and_backward(dtype, size, keys, heads, dim, kernel, table):
    """Calls both backends; what comes out is not looked at."""
    q, grad = torch.ones(2, 1, *size, heads, dim, dtype=dtype)
    k, v = torch.ones(2, 1, *keys, heads, dim, dtype=dtype)
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    bias = TableBias(
        torch.ones(heads, table, table),
        *(torch.ones(n) for n in size),
        torch.ones(1, 1, *keys, 2),
    )
    leaves = q, k, v, bias.table, bias.points_yx
    for x in leaves:
        x.requires_grad_()
    out = triton_deformable.deformable_attention(q, k, v, bias, 1.0, 0.0)
    torch.autograd.grad(out.sum(), leaves)

    leaves = [grad.clone().requires_grad_() for _ in range(3)]
    side = 2 * kernel - 1
    leaves.append(torch.ones(heads, side, side, requires_grad=True))
    out = triton_neighborhood.neighborhood_attention(*leaves, kernel, 1.0, 0.0)
    torch.autograd.grad(out.sum(), leaves)


@needs_triton
@pytest.mark.parametrize(
    'sizes, capability, dtype',
    [
        ('many', 90, 'bfloat16'),
        pytest.param('many', 90, 'float16', marks=pytest.mark.slow),
        pytest.param('many', 90, 'float32', marks=pytest.mark.slow),
        pytest.param('many', 80, 'bfloat16', marks=pytest.mark.slow),
        pytest.param('ones', 90, 'float32', marks=pytest.mark.slow),
        pytest.param('wide', 80, 'float16', marks=pytest.mark.slow),
    ],
)
def test_kernels_compile(sizes, capability, dtype, compiled):
    """The compiler refuses much that the interpreter lets pass."""
    target, kernels = compiled
    target(capability)
    forward_and_backward(getattr(torch, dtype), **SIZES[sizes])
    # Twice: forward, gradient of queries, of keys; and that of one table.
    assert len({kernel.hash for kernel in kernels}) == 7
    for kernel in kernels:
        assert f'.target sm_{capability}' in kernel.asm['ptx']
        assert len(kernel.asm['cubin']) > 1000
        # What every GPU of these generations has for a block.
        assert kernel.metadata.shared <= 99 * 1024, kernel.name


# ------------------------------------------------------------------ declining


def test_works_where_triton_is_missing():
    code = """
import sys
sys.modules['triton'] = None
import torch, mmdat.models
from mmdat.ops.backends import triton_deformable
from mmdat.ops import neighborhood_attention
q = torch.ones(1, 3, 3, 1, 4)
neighborhood_attention(q, q, q, torch.ones(1, 5, 5), 3)
print(triton_deformable.declines(q, q, q, None, 1.0, 0.0))
"""
    done = run_python('-c', code)
    assert done.stdout.strip() == 'Triton is not installed.', done.stderr


def test_triton_is_imported_late():
    """Importing it takes a second, and may ask for a compiler."""
    code = """
import sys
import torch, mmengine
before = 'triton' in sys.modules
import mmdat.models
print(before, 'triton' in sys.modules)
"""
    done = run_python('-c', code)
    before, after = done.stdout.split()
    assert before == after, done.stderr


@pytest.fixture
def anywhere(monkeypatch):
    """As if Triton were there and interpreted, so that CPU tensors pass."""
    monkeypatch.setattr(triton_common, 'HAS_TRITON', True)
    monkeypatch.setattr(triton_common, 'HAS_OPERATORS', True)
    monkeypatch.setattr(triton_common, 'INTERPRETED', True)


def deformable_args(dtype=torch.float32, dim=4, dropout=0.0, **bias):
    q = torch.ones(1, 2, 6, dim, dtype=dtype)
    table = TableBias(
        torch.ones(2, 3, 3),
        torch.zeros(2),
        torch.zeros(3),
        torch.zeros(1, 1, 2, 3, 2),
    )
    return q, q, q, table._replace(**bias), 1.0, dropout


def test_tensors_off_the_gpu_are_declined(monkeypatch, anywhere):
    monkeypatch.setattr(triton_common, 'INTERPRETED', False)
    reason = triton_deformable.declines(*deformable_args())
    assert reason == 'Tensors must be on an NVIDIA GPU; got cpu.'


@pytest.mark.parametrize(
    'change, reason',
    [
        (
            dict(dtype=torch.float64),
            'must be all float16, .* got torch.float64',
        ),
        (dict(dim=129), 'at most 128 channels; got 129'),
        (dict(dropout=0.1), 'cannot be dropped; got dropout=0.1'),
        (dict(table=torch.ones(2, 3, 3).double()), 'must not be float64'),
        (dict(query_x=torch.ones(3, requires_grad=True)), 'no gradient'),
    ],
)
def test_what_the_kernels_cannot_do_is_declined(anywhere, change, reason):
    assert triton_deformable.declines(*deformable_args()) is None
    said = triton_deformable.declines(*deformable_args(**change))
    assert re.search(reason, said)


def test_other_types_and_biases_are_declined(anywhere):
    q, k, v, _, scale, dropout = deformable_args()
    bias = DenseBias(torch.zeros(2, 6, 6))
    said = triton_deformable.declines(q, k, v, bias, scale, dropout)
    assert said == 'A bias must be a TableBias; got DenseBias.'
    said = triton_deformable.declines(q, k.half(), v, None, scale, dropout)
    assert 'got torch.float32, torch.float16, torch.float32' in said


def test_deterministic_algorithms(anywhere):
    """Only the gradient of the table varies from run to run."""
    table = torch.ones(2, 3, 3, requires_grad=True)
    q = torch.ones(1, 3, 3, 2, 4)
    local = q, q, q, torch.ones(2, 5, 5, requires_grad=True), 3, 1.0, 0.0
    learning = deformable_args(table=table)
    assert triton_deformable.declines(*learning) is None
    torch.use_deterministic_algorithms(True)
    try:
        said = triton_deformable.declines(*learning)
        assert 'summed in varying order' in said
        assert triton_deformable.declines(*deformable_args()) is None
        assert triton_neighborhood.declines(*local) is None
    finally:
        torch.use_deterministic_algorithms(False)
    *_, kernel, scale, dropout = local
    wide = (*local[:3], local[3].double(), kernel, scale, dropout)
    assert 'must not be float64' in triton_neighborhood.declines(*wide)
