# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reports the GPU and the software, and which backend runs on it and why."""

import importlib
import platform
import subprocess
from datetime import date

import mmengine
import torch
from cases import ODD
from common import DEVICE, DRY, Rows, guarded

import mmdat
from mmdat import ops

TABLE = 'Machine'


def nvidia_smi(field: str) -> str:
    """Returns a field of nvidia-smi for the first GPU; empty on failure."""
    command = ['nvidia-smi', '-i', '0', f'--query-gpu={field}']
    try:
        return subprocess.run(
            [*command, '--format=csv,noheader,nounits'],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''


def version(module: str) -> str:
    """Returns the version of a package that may be missing."""
    try:
        return importlib.import_module(module).__version__
    except ImportError:
        return 'not installed'


def machine() -> None:
    """Reports the GPU and the software."""

    def say(what, value):
        Rows.add(TABLE, what, None, value=value)

    say('date', date.today().isoformat())
    if DRY:
        say('device', 'none, because a dry run times nothing')
    else:
        card = torch.cuda.get_device_properties(0)
        gib = card.total_memory / 2**30
        say('card', f'{card.name}, {gib:.0f} GiB')
        say('compute capability', f'{card.major}.{card.minor}')
        say('multiprocessors', card.multi_processor_count)
        say('driver', nvidia_smi('driver_version'))
        clock, most = nvidia_smi('clocks.sm'), nvidia_smi('clocks.max.sm')
        say('clock of the SMs, MHz', f'{clock}, at most {most}')
        free, total = torch.cuda.mem_get_info(0)
        say('memory in use, GiB', f'{(total - free) / 2**30:.1f}')
    say('PyTorch', f'{torch.__version__}, CUDA {torch.version.cuda}')
    say('cuDNN', torch.backends.cudnn.version())
    for package in ('triton', 'timm', 'numpy'):
        say(package, version(package))
    say('mmengine', mmengine.__version__)
    say('mmdat', mmdat.__version__)
    say('Python', platform.python_version())


def main(_) -> None:
    """Reports everything, and tests a small computation."""
    with guarded(TABLE, 'machine'):
        machine()
    table = 'Which backend runs, and why others do not'
    for name in ('deformable odd', 'neighborhood odd'):
        with guarded(table, name):
            explain(table, name)
    with guarded(table, 'a small computation'):
        x = torch.randn(64, 64, device=DEVICE, dtype=torch.float64)
        off = (x @ x.inverse() - torch.eye(64, device=DEVICE)).abs().max()
        Rows.add(
            table, 'a small computation', bool(off < 1e-6), error=off.item()
        )


def explain(table: str, name: str) -> None:
    """Reports whether each backend of an op supports bfloat16 here."""
    case = ODD[name]
    _, leaves = case.make()
    q, k, v = (x.bfloat16() for x in leaves[:3])
    if name.startswith('neighborhood'):
        op = ops.neighborhood_attention
        arguments = q, k, v, leaves[3].float(), case.kernel
    else:
        axes = (torch.zeros(n, device=DEVICE) for n in case.queries)
        table_bias = ops.position_bias.TableBias(
            leaves[3].float(), *axes, leaves[4].float()
        )
        op, arguments = ops.deformable_attention, (q, k, v, table_bias)
    for backend, reason in ops.explain(op, *arguments).items():
        Rows.add(table, f'{name}, {backend}', None, reason=reason or 'it runs')
