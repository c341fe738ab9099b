# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""PyTorch before 2.4 has no operators of one's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from mmdat.ops import custom_op

# PyTorch's own modules want them, so they go after these.
OLD_TORCH = """
import mmengine.runner
import torch
import torch._dynamo
import torch.distributed.tensor
for name in ('custom_op', 'CustomOpDef', 'register_fake'):
    vars(torch.library).pop(name, None)
for name in ('is_compiling', 'is_dynamo_compiling', 'is_exporting'):
    vars(torch.compiler).pop(name, None)
from mmdat import DAT
from mmdat.ops.separable import attention as separable
for arch in ('dat_t', 'dat_pp_t'):
    model = DAT(arch)
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    sum(x.sum() for x in model(torch.rand(1, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())
print(separable.not_supported(*[torch.empty(0)] * 3, None, 1.0, 0.0))
"""


def run(program):
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_them_models_train_and_backends_decline():
    assert run(OLD_TORCH).startswith('torch 2.4 or newer is needed')


LAZY = """
import sys
import torch
from mmdat import DAT
before = set(sys.modules)
for arch in ('dat_t', 'dat_pp_t'):
    sum(x.sum() for x in DAT(arch)(torch.rand(1, 3, 64, 64))).backward()
print(sorted(m for m in set(sys.modules) - before if m.startswith('torch._')))
"""


def test_training_does_not_import_the_compiler():
    imported = run(LAZY)
    assert 'torch._dynamo' not in imported
    assert 'torch._inductor' not in imported


def test_what_an_old_torch_lacks_is_asked_for_in_one_place():
    """torch 2.1 has neither `is_compiling` nor `is_dynamo_compiling`."""
    package = Path(custom_op.__file__).parents[1]
    found = [
        path.name
        for path in package.rglob('*.py')
        if re.search(r'torch\.compiler\.is_', path.read_text())
    ]
    assert not found
