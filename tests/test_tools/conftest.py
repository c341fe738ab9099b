# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A tiny data set, and running the commands as a user would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdat.datasets.digits import DigitsOptions, make_digits

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    options = DigitsOptions(train=8, val=4, size=96, crops=4, crop_size=48)
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', options)


def run(*command, ok=True, env=None, cwd=ROOT, timeout=540):
    """Runs a command of ours; returns what it wrote on both streams."""
    environment = {**os.environ, 'PYTHON': sys.executable, **(env or {})}
    environment['PYTHONPATH'] = str(ROOT)
    environment.setdefault('OMP_NUM_THREADS', '1')
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        timeout=timeout,
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, output[-4000:]
    return output


def tool(name, *arguments, **kwargs):
    """Runs tools/NAME with this Python."""
    return run(sys.executable, ROOT / 'tools' / name, *arguments, **kwargs)
