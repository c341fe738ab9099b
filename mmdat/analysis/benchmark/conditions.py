# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""On what and with what it was measured."""

import os
import platform
from datetime import datetime
from pathlib import Path

import torch

from ...version import __version__
from .cases import Conditions


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def load_average() -> float | None:
    """Processes that wanted to compute in the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def warning(conditions: Conditions) -> str | None:
    """What to say if others compute as well, None if all is well."""
    cores = os.cpu_count() or 1
    if conditions.load is None or conditions.load < 0.3 * cores:
        return None
    return (
        f'The machine is busy (load average {conditions.load:g} on {cores} '
        f'cores): times, and ratios too, are worth little.'
    )


def describe(conditions: Conditions) -> dict[str, str | int]:
    """Columns that are the same in all rows of a run."""
    device = torch.device(conditions.device)
    name = conditions.device
    if device.type == 'cuda':
        name = f'{name} ({torch.cuda.get_device_name(device)})'
    return dict(
        date=datetime.now().astimezone().isoformat(timespec='minutes'),
        mmdat=__version__,
        torch=torch.__version__,
        machine=f'{cpu_model()}, {os.cpu_count()} cores',
        load=conditions.load,
        threads=conditions.threads or torch.get_num_threads(),
        device=name,
        dtype=conditions.dtype,
    )
