# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Accuracy in other precisions is that of the exported file."""

import pytest
import torch

from mmdat.analysis.forward import build_model
from mmdat.engine.configuration import load_config

from .conftest import ROOT, tool

CONFIG = 'configs/classifier_dat_digits.py'


@pytest.mark.slow
def test_a_classifier_in_each_precision(digits, tmp_path):
    for package in ('mmpretrain', 'onnx', 'onnxruntime'):
        pytest.importorskip(package)
    torch.manual_seed(0)
    model = build_model(load_config(str(ROOT / CONFIG)))
    weights = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict()), weights)
    said = tool(
        'deployment/accuracy.py',
        *(CONFIG, weights, '--data-root', f'{digits}/imagenet/'),
    ).splitlines()
    pictures = len(list((digits / 'imagenet' / 'val').rglob('*.jpg')))
    assert pictures and f'{pictures} pictures' in said
    names = [line.partition(':')[0] for line in said if 'top 1' in line]
    assert names == [
        'PyTorch, float32',
        'PyTorch, bfloat16 autocast',
        'onnxruntime, float32',
        'onnxruntime, int8',
    ]
    same = next(line for line in said if 'onnxruntime, float32' in line)
    assert same.endswith(' 0 predictions differ from float32')
