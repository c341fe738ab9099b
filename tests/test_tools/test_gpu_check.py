# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The check of a GPU: dry, it runs here; and it notices what is wrong."""

import importlib.util
import json
import sys

import pytest
import torch
from versions import needs_torch

from .conftest import ROOT, run

SCRIPT = ROOT / 'tools' / 'dev' / 'gpu_check.sh'
FOLDER = SCRIPT.with_suffix('')


def in_folder(code):
    """Code that imports the files of the check."""
    return code.replace('FOLDER', repr(str(FOLDER)))


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location(
        'gpu_check_run', FOLDER / 'run.py'
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses ask for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


# An older PyTorch has no half precision on a CPU, which the dry run takes.
@needs_torch('2.4')
@pytest.mark.slow
def test_a_dry_run_comes_to_its_end(tmp_path):
    said = run(
        *('bash', SCRIPT, '--dry', '--limit', '520', '--out', tmp_path),
        env=dict(CUDA_VISIBLE_DEVICES=''),
    )
    parts = json.loads((tmp_path / 'results.json').read_text())
    rows = [row for part in parts for row in part['rows']]
    assert {part['ending'] for part in parts} == {'ended'}, said
    proven = [row for row in rows if row['ok'] is not None]
    assert all(row['ok'] for row in proven)
    assert f'{len(proven)} of {len(proven)} checks passed.' in said
    tables = (tmp_path / 'results.md').read_text()
    titles = [line[4:] for line in tables.splitlines() if line[:3] == '###']
    for title in (
        *('Machine', 'Which backend runs', 'Whole backbones', 'Rates of'),
        *('train, ', 'inference, ', 'torch.compile', 'Attentions alone'),
        *('Kernels of a training step, dat_pp_t', 'Sampling alone'),
        *('The gradient of a sum', 'With TF32', 'Points that are not'),
        *(f'Errors in {t}' for t in ('float32', 'bfloat16', 'float16')),
    ):
        assert any(t.startswith(title) for t in titles), title
    for dtype in ('float32', 'bfloat16', 'float16'):
        what = {r['what'] for r in rows if f'in {dtype},' in r['table']}
        for op in ('deformable', 'neighborhood', 'sampling'):
            assert any(w.startswith(op) for w in what)
    assert (tmp_path / 'log.txt').read_text().count('\n') > len(rows)


def test_every_part_of_a_dry_run_is_one_of_a_real_run(check):
    real, dry = (
        {a for group in groups for part in group for a in part.arguments}
        for groups in (check.GROUPS, check.DRY_GROUPS)
    )
    assert dry == real | {'--dry'}
    # The parts that stand in one row take the longest of their limits.
    limits = [max(p.seconds for p in group) for group in check.GROUPS]
    assert sum(limits[:3]) < 460 - 100


STAND_IN = """
import json, os, signal, sys, time
name, rows = sys.argv[1], sys.argv[3]
row = dict(table='t', what=name, ok=True, why='', cells={'ms': 1})
with open(rows, 'a') as file:
    print(json.dumps(row), file=file, flush=True)
    if name == 'wrong':
        print(json.dumps({**row, 'ok': False, 'why': 'is off'}), file=file)
print(name, 'says this', flush=True)
if name == 'hangs':
    time.sleep(600)
if name == 'crashes':
    os.kill(os.getpid(), signal.SIGSEGV)
sys.exit(name == 'fails')
"""


def test_what_breaks_costs_its_own_part_only(check, tmp_path, capfd):
    program = tmp_path / 'stand_in.py'
    program.write_text(STAND_IN)
    say = check.Log(tmp_path / 'log.txt')
    found = {}
    for name in ('crashes', 'hangs', 'fails', 'wrong', 'good'):
        part = check.Part(name, (name,), 9, proves=name != 'hangs')
        seconds = 3 if name == 'hangs' else 60
        found[name] = check.run_part(part, say, seconds, [str(program)])
    endings = {name: outcome.ending for name, outcome in found.items()}
    assert endings == {
        'crashes': 'killed by signal 11',
        'hangs': 'out of time',
        'fails': 'status 1',
        'wrong': 'ended',
        'good': 'ended',
    }
    assert all(outcome.rows for outcome in found.values())
    lines, good = check.summary(list(found.values()))
    assert not good and lines[0] == '5 of 6 checks passed.'
    assert 'FAILED wrong: wrong: is off' in lines
    assert 'FAILED crashes: killed by signal 11' in lines
    assert 'Not everything was timed: hangs: out of time' in lines
    assert check.summary([found['good'], found['hangs']])[1]
    assert not check.summary([])[1]
    assert 'good says this' in capfd.readouterr().out
    table = check.markdown(list(found.values()))
    assert '| wrong | 1 | FAILED |' in table and '| good | 1 | ok |' in table


WRONG = """
import sys
sys.path.insert(0, FOLDER)
sys.argv.append('--dry')
import torch, common, cases, check_ops
case = cases.ODD['deformable odd']
right, leaves = case.make()
def output(*x, backend=None):
    out = right(*x, backend=None)
    return out if backend == 'reference' else out * 1.0001
def gradient(*x, backend=None):
    if backend != 'reference':
        x = [*x[:4], x[4] + 0 * x[4].detach() + (x[4] - x[4].detach()) * 1e-3]
    return right(*x, backend=None)
def unwritten(*x, backend=None):
    out = right(*x, backend=None)
    if backend == 'reference':
        return out
    hole = torch.zeros_like(out)
    hole[0, 0, 0] = torch.empty_like(out)[0, 0, 0] * 0 + float('nan')
    return out + hole
def unsteady(*x, backend=None):
    out = right(*x, backend=None)
    if backend == 'reference':
        return out
    return out * (1 + 1e-7) ** (1000 * next(count))
count = iter(range(9))
class Case:
    names = case.names
    def __init__(self, op): self.op = op
    def make(self): return self.op, leaves
for op in (right, output, gradient, unwritten, unsteady):
    check_ops.prove('t', op.__name__, Case(op), None, torch.float32)
"""


def test_wrong_kernels_are_noticed():
    said = run(
        *(sys.executable, '-c', in_folder(WRONG)),
        env=dict(TRITON_INTERPRET='0'),
    )
    lines = [line for line in said.splitlines() if 'repeats' in line]
    assert [line.split()[0] for line in lines] == ['ok'] + ['FAILED'] * 4, said
    for line, why in zip(
        lines[1:], ('of out ', 'of points ', 'of out nan', 'differs by')
    ):
        assert why in line
    assert 'of q' not in lines[2] and 'of out' not in lines[2]


STAND_INS = """
import sys, time, types
sys.path.insert(0, FOLDER)
sys.argv.append('--dry')
import torch, common, cases  # small cases, and then as if there were a GPU
common.DRY = False
common.FLUSHED_BYTES = 1000
class Event:
    def __init__(self, enable_timing):
        assert enable_timing
    def record(self):
        self.at = time.perf_counter()
    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)
torch.cuda.Event = Event
for name in '_sleep synchronize empty_cache reset_peak_memory_stats'.split():
    setattr(torch.cuda, name, lambda *_: None)
torch.cuda.memory_allocated = lambda: 10**9
torch.cuda.max_memory_allocated = lambda: 3 * 10**9
torch.cuda.mem_get_info = lambda _: (2**35, 2**36)
torch.cuda.get_device_properties = lambda _: types.SimpleNamespace(
    name='a card', total_memory=2**36, major=9, minor=0,
    multi_processor_count=132)
cases.SAMPLERS.pop('triton', None)
import check_card, check_kernels, check_steps
check_card.machine()
check_kernels.MATRIX_SIDE, check_kernels.COPIED_BYTES = 64, 1000
check_kernels.nvidia_smi = lambda _: '1980'
check_kernels.triton = lambda: None
check_kernels.main([])
check_steps.SIZE = 1, 3, 32, 32
check_steps.find_spec = lambda _: True
check_steps.swin = check_steps.model = lambda *_: Two()
class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return [self.conv(x), self.conv(x)]
check_steps.compare('train')
"""


@needs_torch('2.4')
def test_what_a_dry_run_leaves_out():
    """Timing, memory and floors, with stand-ins for the device."""
    said = run(
        *(
            sys.executable,
            '-c',
            in_folder(STAND_INS),
        ),
        env=dict(TRITON_INTERPRET='0'),
    )
    assert 'FAILED' not in said and 'Error' not in said, said
    lines = {line[7:30].strip(): line for line in said.splitlines()}
    assert 'value a card, 64 GiB' in lines['card']
    issues = 132 * 4 * 1980e6  # a second
    assert f'rate {issues / 1e12:.3g}' in said
    attention = next(line for line in lines.values() if 'pairs M' in line)
    for column in (
        'forward ms',
        'forward floor',
        'forward target',
        'SDPA forward',
    ):
        assert float(attention.split(f'  {column} ')[1].split()[0]) > 0
    # As slow as Swin-T or not, it takes as much memory: 2 of 2 GB.
    ours, again = lines['dat_t'], lines['Swin-T of timm, again']
    assert 'peak GB 2 ' in ours and 'memory / Swin-T 1 ' in ours
    assert 'of Swin-T, no more memory' in ours and 'time / Swin-T' in again


def test_wheels_are_asked_for_and_used(tmp_path):
    """By a stand-in for Python that lacks mmengine and says what it does."""
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\n[ "$1" != -c ] && echo "$@"\n')
    python.chmod(0o755)
    wheels = tmp_path / 'wheels'
    environment = dict(PYTHON=str(python), WHEELS=str(wheels))
    said = run('bash', SCRIPT, ok=False, env=environment)
    assert 'mmengine cannot be imported' in said and str(wheels) in said
    wheels.mkdir()
    (wheels / 'some.whl').touch()
    said = run('bash', SCRIPT, '--dry', env=environment)
    install, check = said.strip().splitlines()
    assert '--no-index' in install and install.endswith('/some.whl')
    assert check == 'tools/dev/gpu_check/run.py --dry'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.slow
def test_on_a_gpu(tmp_path):
    said = run('bash', SCRIPT, 'card', 'ops', '--out', tmp_path)
    assert 'checks passed' in said
