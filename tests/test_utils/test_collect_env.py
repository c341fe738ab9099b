# Copyright (c) mmdat contributors. Apache-2.0 licence.
import subprocess
import sys

import torch

import mmdat
from mmdat.utils import collect_env


def test_prints_what_a_bug_report_needs():
    done = subprocess.run(
        [sys.executable, '-m', 'mmdat.utils.collect_env'],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(
        line.split(': ', 1)
        for line in done.stdout.splitlines()
        if ': ' in line
    )
    assert found['PyTorch'] == torch.__version__
    assert found['mmdat'].startswith(mmdat.__version__)
    assert 'mmdet' in found['mmdet'] or found['mmdet'] == 'not installed'
    assert "mmcv's operators" in found and 'MMDAT_ATTN_BACKEND' in found


def test_notices_two_packages_in_one_folder():
    both = {'mmdet': ['pip', 'pytest']}
    said = collect_env._describe('mmengine', {'mmengine': both['mmdet']})
    assert 'two packages share one folder' in said


def test_without_distutils_the_rest_is_reported(monkeypatch):
    """mmengine imports it, and Python 3.12 has none without setuptools."""

    def fails():
        raise ModuleNotFoundError("No module named 'distutils'")

    monkeypatch.setattr(collect_env, 'collect_base_env', fails)
    found = collect_env.collect_env()
    assert 'pip install setuptools' in found['Report of mmengine']
    assert found['PyTorch'] == torch.__version__ and 'mmcv' in found
