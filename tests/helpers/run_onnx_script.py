# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Runs tools/deployment/run_onnx.py as a user does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parents[2] / 'tools' / 'deployment' / 'run_onnx.py'


def run_onnx_script(path, picture, folder, out, *options):
    """What the script writes to `out`, and what it prints."""
    np.save(folder / 'picture.npy', picture)
    done = subprocess.run(
        [
            *(sys.executable, SCRIPT, path, folder / 'picture.npy'),
            *('--out', folder / out, *options),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / out), done.stdout
