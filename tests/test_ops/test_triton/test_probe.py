# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Where Triton's kernels cannot be relied on, plain PyTorch runs."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from torch._subclasses.fake_tensor import FakeTensorMode
from versions import needs_torch

from mmdat import ops
from mmdat.ops.position_bias import TableBias
from mmdat.ops.triton import common, probe

needs_triton = pytest.mark.skipif(
    not (common.HAS_TRITON and common.HAS_OPERATORS),
    reason='needs Triton and PyTorch 2.4',
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(probe, '_found', {})
    monkeypatch.delenv('MMDAT_ATTN_BACKEND', raising=False)


@pytest.fixture
def warnings():
    """What is logged as a warning."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def case(**changes):
    first = probe.Case('op', 'cpu', torch.float32, (8,), False)
    return first._replace(**changes)


def pairs(error):
    wanted = torch.arange(6.0)
    return [(wanted, wanted), (wanted + 5 * error, wanted)]


# --------------------------------------------------------------- what is said


def test_right_numbers_are_a_reason_to_run(warnings):
    assert probe.failure(case(), lambda _: pairs(1e-3)) is None
    assert not warnings


@pytest.mark.parametrize('error', [0.1, float('nan'), float('inf')])
def test_wrong_numbers_are_a_reason_to_decline(error, warnings):
    reason = probe.failure(case(), lambda _: pairs(error))
    assert 'on a small case they are off by' in reason
    assert len(warnings) == 1 and reason in warnings[0]


def test_an_error_is_told_once_in_a_sentence_and_remembered(warnings):
    tried = []

    def run(case):
        tried.append(case)
        raise OSError('\n\nnvcc fatal: no such file.\n  and much more\n' * 9)

    for _ in range(3):
        reason = probe.failure(case(), run)
    assert reason == 'OSError: nvcc fatal: no such file.'
    assert len(tried) == len(warnings) == 1
    assert reason in warnings[0] and '\n' not in warnings[0]
    assert probe.failure(case(dtype=torch.float16), run) == reason
    assert len(tried) == 2


def test_what_trains_also_infers():
    run = lambda _: pairs(0)  # noqa: E731
    assert probe.failure(case(training=True), run) is None

    def fail(_):
        raise AssertionError('tried again')

    assert probe.failure(case(), fail) is None
    assert 'tried again' in probe.failure(case(settings=(9,)), fail)
    # That the gradients fail says nothing of inference.
    assert probe.failure(case(settings=(9,)), run) is not None
    failing = case(settings=(10,), training=True)
    assert probe.failure(failing, fail) is not None
    assert probe.failure(failing._replace(training=False), run) is None


def test_a_lack_of_memory_is_not_remembered():
    def run(_):
        raise torch.cuda.OutOfMemoryError('out of memory')

    assert 'no memory' in probe.failure(case(), run)
    assert probe.failure(case(), lambda _: pairs(0)) is None


def test_nothing_is_tried_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', bool)
    ran = lambda _: pairs(0)  # noqa: E731
    assert probe.failure(case(device='cuda:0'), ran) is None
    monkeypatch.setattr(
        torch.cuda, 'is_current_stream_capturing', lambda: True
    )
    assert probe.failure(case(device='cuda:0'), ran) is None  # known
    reason = probe.failure(case(device='cuda:1'), ran)
    assert 'before this graph was captured' in reason


def test_modes_of_the_caller_do_not_reach_a_trial():
    def run(_):
        leaf = torch.ones(2, 2, requires_grad=True)
        out = leaf @ leaf
        assert out.dtype == torch.float32
        assert type(out) is torch.Tensor and out.tolist() == [[2, 2], [2, 2]]
        torch.autograd.grad(out.sum(), leaf)
        return pairs(0)

    for index, mode in enumerate(
        (
            torch.inference_mode(),
            torch.autocast('cpu', torch.bfloat16),
            FakeTensorMode(),
            torch.device('meta'),
        )
    ):
        with mode:
            assert probe.failure(case(settings=(index,)), run) is None


# ---------------------------------------------------------- other than NVIDIA


def tensor(dtype=torch.float32, on='cuda'):
    """What is asked of a tensor."""
    device = torch.device(on)
    return SimpleNamespace(
        is_cuda=device.type == 'cuda', device=device, dtype=dtype
    )


def test_who_has_no_kernels(monkeypatch):
    monkeypatch.setattr(common, 'INTERPRETED', False)
    monkeypatch.setattr(common, 'HAS_TRITON', True)
    monkeypatch.setattr(common, 'HAS_OPERATORS', True)
    monkeypatch.setattr(torch.version, 'cuda', '12.8')
    assert common.declines(tensor()) is None
    assert 'got mps' in common.declines(tensor(on='mps'))
    assert 'got cpu' in common.declines(tensor(on='cpu'))
    assert 'float64' in common.declines(tensor(torch.float64))
    monkeypatch.setattr(torch.version, 'cuda', None)
    assert 'got an AMD GPU' in common.declines(tensor())
    monkeypatch.setattr(common, 'HAS_TRITON', False)
    assert common.declines(tensor()) == 'Triton is not installed.'


@pytest.mark.skipif(not common.HAS_OPERATORS, reason='needs PyTorch 2.4')
def test_old_gpus_are_tried_in_other_types_than_bfloat16(monkeypatch):
    monkeypatch.setattr(common, 'INTERPRETED', False)
    monkeypatch.setattr(common, 'HAS_TRITON', True)
    monkeypatch.setattr(torch.version, 'cuda', '12.8')
    turing = SimpleNamespace(major=7, minor=5)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: turing)
    assert common.declines(tensor(torch.float16)) is None
    assert common.declines(tensor(torch.float32)) is None
    assert 'got 7.5' in common.declines(tensor(torch.bfloat16))


# ------------------------------------------- a machine that cannot build them

NO_COMPILER = """
import logging
import torch
from mmengine.logging import MMLogger
from triton.backends.nvidia.driver import CudaDriver

# As on a machine with a GPU, until something is to be built.
CudaDriver.is_active = staticmethod(lambda: True)
from mmdat import DAT
from mmdat.ops.triton import common
common.declines = lambda x: None

said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
MMLogger.get_current_instance().addHandler(handler)
images = torch.rand(1, 3, 32, 48)
arch = dict(
    embed_dims=[16] * 4, depths=1, num_heads=2, attentions=['N', 'D'] * 2
)
torch.manual_seed(0)
model = DAT(arch, img_size=32)
got = model(images)
sum(x.sum() for x in got).backward()
model(images)
# Once for each of neighbourhoods, sampling and deformable attention.
assert len(said) == len({*said}) == 3, said
assert all('C compiler' in x and 'plain PyTorch is' in x for x in said), said
torch.manual_seed(0)
wanted = DAT(arch, img_size=32, backend='sdpa')(images)
for a, b in zip(got, wanted):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
try:
    DAT(arch, img_size=32, backend='triton')(images)
except RuntimeError as error:
    print(error)
"""


@needs_triton
@needs_torch('2.9')  # Triton before looks for a GPU first
def test_without_a_compiler_plain_pytorch_runs(tmp_path):
    environment = {**os.environ, 'PATH': '', 'OMP_NUM_THREADS': '1'}
    for name in ('CC', 'TRITON_INTERPRET', 'MMDAT_ATTN_BACKEND'):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, '-c', NO_COMPILER],
        capture_output=True,
        text=True,
        env={
            **environment,
            'TRITON_CACHE_DIR': str(tmp_path),
            'TRITON_LIBCUDA_PATH': str(tmp_path),
        },
    )
    assert done.returncode == 0, done.stderr
    assert 'Failed to find C compiler' in done.stdout


def test_explain_and_bug_reports_show_what_failed(monkeypatch):
    monkeypatch.setattr(common, 'declines', lambda x: None)
    monkeypatch.setattr(probe, 'declines', lambda x: None)

    def fail(case):
        raise RuntimeError('no launch today')

    monkeypatch.setattr(probe, '_run_deformable', fail)
    monkeypatch.setattr(probe, '_run_neighborhood', fail)
    q = torch.rand(1, 4, 6, 2, 8)
    axes = torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 6)
    bias = TableBias(torch.rand(2, 3, 5), *axes, torch.rand(1, 1, 4, 6, 2))
    found = ops.explain(ops.deformable_attention, q, q, q, bias)
    assert found['triton'] == 'RuntimeError: no launch today.'
    found = ops.explain(
        ops.neighborhood_attention, q, q, q, torch.rand(2, 5, 5), 3
    )
    assert found['triton'] == 'RuntimeError: no launch today.'

    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(
        torch, 'empty', lambda *_, dtype, device: tensor(dtype, device)
    )
    found = probe.report()['Triton on cuda:0']
    assert found.count('does not: RuntimeError: no launch today.') == 6
