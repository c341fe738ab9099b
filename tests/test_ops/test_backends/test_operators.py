# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""PyTorch before 2.4 has no operators of one's own."""

import subprocess
import sys

# PyTorch's own modules want them, so they go after these.
OLD_TORCH = """
import mmengine.runner
import torch
import torch._dynamo
import torch.distributed.tensor
for name in ('custom_op', 'CustomOpDef', 'register_fake'):
    vars(torch.library).pop(name, None)
from mmdat import DAT
from mmdat.ops.backends import separable
for arch in ('dat_t', 'dat_pp_t'):
    model = DAT(arch)
    sum(x.sum() for x in model(torch.rand(1, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())
print(separable.declines(*[torch.empty(0)] * 3, None, 1.0, 0.0))
"""


def test_without_them_models_train_and_backends_decline():
    done = subprocess.run(
        [sys.executable, '-c', OLD_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('torch 2.4 or newer is needed')
