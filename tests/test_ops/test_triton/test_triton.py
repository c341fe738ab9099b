# Copyright (c) mmdat contributors. Apache-2.0 licence.
import os
import re
import subprocess
import sys
from pathlib import Path

import kernel_cost
import pytest
import torch
from versions import needs_torch

from mmdat.ops.position_bias import DenseBias, TableBias
from mmdat.ops.triton import common as triton_common
from mmdat.ops.triton import deformable as triton_deformable
from mmdat.ops.triton import neighborhood as triton_neighborhood
from mmdat.ops.triton import sampling as triton_sampling

CASES = Path(__file__).with_name('triton_cases.py')
needs_triton = pytest.mark.skipif(
    not (triton_common.HAS_TRITON and triton_common.HAS_OPERATORS),
    reason='needs Triton and PyTorch 2.4',
)
# What kernel_cost.py replaces in Triton is not there before.
needs_stand_ins = needs_torch('2.9')


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


# Sizes of 1 are compiled into a kernel as constants, multiples of 16 are
# told apart, so that both have to be tried.
SIZES = {
    'ones': dict(size=(1, 1), keys=(1, 1), heads=1, dim=1, kernel=1, table=1),
    'many': dict(
        size=(9, 16), keys=(4, 4), heads=4, dim=32, kernel=7, table=5
    ),
    'middle': dict(
        size=(9, 8), keys=(5, 4), heads=2, dim=64, kernel=7, table=5
    ),
    'wide': dict(
        size=(8, 8), keys=(4, 5), heads=2, dim=128, kernel=3, table=3
    ),
}


def forward_and_backward(
    dtype, size, keys, heads, dim, kernel, table, batch=1
):
    """Calls both backends; what comes out is not looked at."""
    q, grad = torch.ones(2, batch, *size, heads, dim, dtype=dtype)
    k, v = torch.ones(2, batch, *keys, heads, dim, dtype=dtype)
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    bias = TableBias(
        torch.ones(heads, table, table),
        *(torch.ones(n) for n in size),
        torch.ones(batch, 1, *keys, 2),
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


def sample_and_backward(dtype, batch, height, width, hk, wk):
    """Calls the sampler; what comes out is not looked at."""
    x = torch.ones(batch, height, width, 128, dtype=dtype, requires_grad=True)
    points = torch.ones(batch, 2, hk, wk, 2, requires_grad=True)
    out = triton_sampling.sample_at_points(x, points)
    torch.autograd.grad(out.sum(), (x, points))


@needs_triton
@needs_stand_ins
@pytest.mark.parametrize(
    'sizes, capability, dtype',
    [
        ('many', 90, 'bfloat16'),
        pytest.param('many', 75, 'float16', marks=pytest.mark.slow),
        pytest.param('many', 90, 'float32', marks=pytest.mark.slow),
        pytest.param('many', 80, 'bfloat16', marks=pytest.mark.long),
        pytest.param('ones', 90, 'float32', marks=pytest.mark.long),
        pytest.param('middle', 86, 'bfloat16', marks=pytest.mark.slow),
        pytest.param('wide', 80, 'float16', marks=pytest.mark.slow),
        pytest.param('wide', 75, 'float32', marks=pytest.mark.long),
    ],
)
def test_kernels_compile(sizes, capability, dtype):
    """The compiler refuses much that the interpreter lets pass."""
    with kernel_cost.compiled_for(capability) as launches:
        forward_and_backward(getattr(torch, dtype), **SIZES[sizes])
    # Deformable attention: cells (twice), forward, gradients of queries, keys
    # and table; neighbourhoods: forward, gradients of queries and keys.
    assert len({launch.name for launch in launches}) == 8
    for launch in launches:
        kernel = launch.kernel
        assert f'.target sm_{capability}' in kernel.asm['ptx']
        assert len(kernel.asm['cubin']) > 1000
        # What every GPU of these generations has for a block.
        limit = 64 if capability < 80 else 99
        assert kernel.metadata.shared <= limit * 1024, launch.name


@needs_triton
@needs_stand_ins
def test_mixed_sizes_share_their_kernels(monkeypatch):
    """Training on images of all sizes compiles each kernel once."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    variants = {}

    def run(self, *args, grid, warmup, **kwargs):
        device = driver.active.get_current_device()
        *_, bind = self.device_caches[device]
        _, specialization, options = bind(*args, **kwargs)
        name = self.__module__, self.__name__
        variants.setdefault(name, set()).add(f'{specialization} {options}')

    monkeypatch.setattr(JITFunction, 'run', run)
    with kernel_cost.absent_gpu(80):
        for batch, height, width, hk, wk in (
            (1, 8, 16, 1, 1),
            (2, 7, 7, 2, 3),
            (2, 16, 31, 4, 8),
            (1, 13, 48, 3, 12),
            (3, 32, 32, 16, 16),
            (1, 9, 7, 1, 16),
            (16, 17, 33, 5, 1),
        ):
            forward_and_backward(
                torch.bfloat16,
                (height, width),
                (hk, wk),
                heads=4,
                dim=32,
                kernel=7,
                table=27,
                batch=batch,
            )
            sample_and_backward(torch.bfloat16, batch, height, width, hk, wk)
    assert len(variants) == 10
    for name, compiled in variants.items():
        assert len(compiled) == 1, (name, compiled)


# ------------------------------------------------------------------ declining


def test_works_where_triton_is_missing():
    code = """
import sys
sys.modules['triton'] = None
import torch, mmdat.models
from mmdat.ops.triton import deformable as triton_deformable
from mmdat.ops import neighborhood_attention
q = torch.ones(1, 3, 3, 1, 4)
neighborhood_attention(q, q, q, torch.ones(1, 5, 5), 3)
print(triton_deformable.not_supported(q, q, q, None, 1.0, 0.0))
"""
    done = run_python('-c', code)
    assert done.stdout.strip() == 'Triton is not installed.', done.stderr


@needs_torch('2.9')  # earlier ones import it themselves
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


def deformable_args(dtype=torch.float32, dim=4, dropout=0.0, batch=1, **bias):
    q = torch.ones(1, 2, 6, dim, dtype=dtype).expand(batch, -1, -1, -1)
    table = TableBias(
        torch.ones(2, 3, 3),
        torch.zeros(2),
        torch.zeros(3),
        torch.zeros(1, 1, 2, 3, 2),
    )
    return q, q, q, table._replace(**bias), 1.0, dropout


def test_tensors_off_the_gpu_are_declined(monkeypatch, anywhere):
    monkeypatch.setattr(triton_common, 'INTERPRETED', False)
    reason = triton_deformable.not_supported(*deformable_args())
    assert reason == 'Tensors must be on an NVIDIA GPU; got cpu.'


@pytest.mark.parametrize(
    'change, reason',
    [
        (
            dict(dtype=torch.float64),
            'float16, bfloat16 and float32; got torch.float64',
        ),
        (dict(dim=129), 'at most 128 channels; got 129'),
        (dict(dropout=0.1), 'cannot be dropped; got dropout=0.1'),
        (dict(table=torch.ones(2, 3, 3).double()), 'must not be float64'),
        (dict(query_x=torch.ones(3, requires_grad=True)), 'no gradient'),
        (dict(table=torch.ones(2, 600, 3000)), 'got 1024 x 4096'),
        (dict(table=torch.ones(2, 3, 3, device='meta')), 'got cpu and meta'),
        (dict(batch=0), 'must have elements'),
        (dict(batch=40_000), 'at most 65535; got 80000'),
    ],
)
def test_what_the_kernels_cannot_do_is_declined(anywhere, change, reason):
    assert triton_deformable.not_supported(*deformable_args()) is None
    said = triton_deformable.not_supported(*deformable_args(**change))
    assert re.search(reason, said)


def test_other_types_and_biases_are_declined(anywhere):
    q, k, v, _, scale, dropout = deformable_args()
    bias = DenseBias(torch.zeros(2, 6, 6))
    said = triton_deformable.not_supported(q, k, v, bias, scale, dropout)
    assert said == 'A bias must be a TableBias; got DenseBias.'
    said = triton_deformable.not_supported(
        q, k.half(), v, None, scale, dropout
    )
    assert 'got torch.float32, torch.float16, torch.float32' in said


def test_deterministic_algorithms(anywhere):
    """Only the gradient of a sampled map varies from run to run."""
    table = torch.ones(2, 3, 3, requires_grad=True)
    q = torch.ones(1, 3, 3, 2, 4)
    local = q, q, q, torch.ones(2, 5, 5, requires_grad=True), 3, 1.0, 0.0
    learning = deformable_args(table=table)
    x, points = torch.ones(1, 3, 3, 4), torch.zeros(1, 1, 2, 2, 2)
    mapped = x.clone().requires_grad_(), points
    assert triton_sampling.not_supported(*mapped) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert triton_deformable.not_supported(*learning) is None
        assert triton_neighborhood.not_supported(*local) is None
        assert triton_sampling.not_supported(x, points) is None
        said = triton_sampling.not_supported(*mapped)
        assert 'summed in varying order' in said
        with torch.no_grad():
            assert triton_sampling.not_supported(*mapped) is None
    finally:
        torch.use_deterministic_algorithms(False)
    said = triton_sampling.not_supported(x, points.double())
    assert said == 'Points must be float32; got torch.float64.'
    many = x.expand(70_000, -1, -1, -1), points.expand(70_000, *[-1] * 4)
    assert 'got 70000' in triton_sampling.not_supported(*many)
    *_, kernel, scale, dropout = local
    wide = (*local[:3], local[3].double(), kernel, scale, dropout)
    assert 'must not be float64' in triton_neighborhood.not_supported(*wide)
