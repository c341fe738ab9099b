# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The oracle gives the numbers of the authors' published code."""

import golden_rule
import numpy as np
import pytest
from oracle import model
from oracle.variants import VARIANTS

# The golden arrays were computed in float32, the oracle runs in float64.
TOLERANCE = 1e-5


def run(case):
    params = golden_rule.state_dict(case.keys)
    stages = model.forward_stages(
        golden_rule.image(case.input_shape), params, VARIANTS[case.arch]
    )
    if case.dense:
        name, maps, outputs = 'feat', model.dense_outputs(stages, params), {}
    else:
        name, maps = 'stage', stages.maps
        outputs = dict(logits=model.logits(stages, params))
    for i, (feature, step) in enumerate(
        zip(maps, golden_rule.MAP_STRIDES, strict=True)
    ):
        outputs[f'{name}{i}'] = feature[:, :, ::step, ::step]
    for (stage, block), points_yx in stages.points_yx.items():
        outputs[f'pos_s{stage}_b{block}'] = points_yx
    return outputs


def test_all_golden_files_are_there():
    assert len(golden_rule.case_names()) == 14


@pytest.mark.parametrize('name', golden_rule.case_names())
def test_reproduces(name):
    outputs = run(golden_rule.case(name))
    errors = {}
    for key, golden in golden_rule.golden(name).items():
        assert outputs[key].shape == golden.shape
        errors[key] = (
            np.abs(outputs[key] - golden).max() / np.abs(golden).max()
        )
    worst = max(errors, key=errors.get)
    print(f'{name}: worst relative error {errors[worst]:.1e} ({worst})')
    assert errors[worst] < TOLERANCE, errors


def test_golden_files_of_dat_hold_all_deformed_points():
    points = [
        key
        for key in golden_rule.golden('v1-dat_tiny-224x224')
        if key.startswith('pos_')
    ]
    assert sorted(points) == [
        'pos_s2_b1',
        'pos_s2_b3',
        'pos_s2_b5',
        'pos_s3_b1',
    ]
