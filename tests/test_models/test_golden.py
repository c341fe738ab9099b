# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The package gives the numbers of the authors' code.

``pytest tests/test_models/test_golden.py -s`` prints the worst error of each
file, relative to the largest value of the array compared.
"""

import golden_rule
import numpy as np
import pytest
import released
import torch
from torch import nn

from mmdat.models import DAT
from mmdat.models.attention import DeformableAttention

TOLERANCE = 2e-5


def outputs_of(model: nn.Module, dense: bool, images) -> dict[str, np.ndarray]:
    """What a golden file holds, computed by a model of ours."""
    found = {}

    def keep_stage(i):
        def hook(module, args, out):
            found[f'stage{i}'] = out.permute(0, 3, 1, 2)

        return hook

    def keep_points(name):
        def hook(module, args, out):
            found[name] = module.points_yx(module.proj_q(args[0]))

        return hook

    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(keep_stage(i))
        for j, block in enumerate(stage.blocks):
            if isinstance(block.attn, DeformableAttention):
                block.attn.register_forward_hook(keep_points(f'pos_s{i}_b{j}'))
    with torch.no_grad():
        maps = model(images)
    if dense:
        found.update({f'feat{i}': level for i, level in enumerate(maps)})
    else:
        found['norm3'] = maps[0]
    return found


@pytest.mark.parametrize('name', golden_rule.case_names())
def test_reproduces(name, capsys):
    case = golden_rule.case(name)
    entries = released.state_dict(case.keys)
    model = DAT(
        released.arch_of(case.keys),
        out_indices=(0, 1, 2, 3) if case.dense else (3,),
    ).eval()
    model.load_state_dict(entries, strict=True)
    images = torch.from_numpy(golden_rule.image(case.input_shape))
    found = outputs_of(model, case.dense, images)
    if not case.dense:
        found['logits'] = nn.functional.linear(
            found['norm3'].mean((2, 3)),
            entries['cls_head.weight'],
            entries['cls_head.bias'],
        )

    errors = {}
    for key, wanted in golden_rule.golden(name).items():
        ours = found[key].numpy()
        if key.startswith(('stage', 'feat')):
            stride = golden_rule.MAP_STRIDES[int(key[-1])]
            ours = ours[..., ::stride, ::stride]
        assert ours.shape == wanted.shape, key
        errors[key] = np.abs(ours - wanted).max() / np.abs(wanted).max()
    worst = max(errors, key=errors.get)
    with capsys.disabled():
        print(f'  {name:24} {errors[worst]:.1e} of the maximum, in {worst}')
    assert errors[worst] <= TOLERANCE


def test_every_golden_file_is_looked_at():
    assert len(golden_rule.case_names()) == 14
