# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the kernels cost by their machine code, and the tool that reads it."""

import kernel_cost
import pytest
import torch

from mmdat.ops.triton import common

needs_triton = pytest.mark.skipif(
    not (common.HAS_TRITON and common.HAS_OPERATORS),
    reason='needs Triton and PyTorch 2.4',
)


def test_loops_are_found():
    code = """.L_x_0:
MOV R1, R2
.L_x_1:
FADD R1, R1, R2
@P0 BRA `(.L_x_1)
@P1 BRA `(.L_x_2)
@P2 BRA `(.L_x_0)
.L_x_2:
EXIT""".splitlines()
    (loop,) = kernel_cost.loops(code)
    assert loop == ['FADD R1, R1, R2', '@P0 BRA `(.L_x_1)']
    (loop,) = kernel_cost.loops(code, outermost=True)
    assert (loop[0], len(loop)) == ('MOV R1, R2', 5)


def test_scores_of_a_turn():
    assert kernel_cost.scores_of(dict(BLOCK_Q=4, BLOCK_K=8, SIDE=2)) == 32
    sides = dict(TILE_Y=2, TILE_X=3, STEP_Y=5, STEP_X=7)
    assert kernel_cost.scores_of(sides) == 210
    assert kernel_cost.scores_of(dict(BLOCK=3)) == 0


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize('capability', [80, 90])
def test_deformable_attention_keeps_to_its_instructions(capability):
    """In bfloat16 with 32 channels; the table counts to the keys."""
    with kernel_cost.compiled_for(capability) as launches:
        kernel_cost.call_deformable(torch.bfloat16)
    costs = {
        launch.name.partition('.')[2]: kernel_cost.cost_of(launch)
        for launch in launches
    }
    counts = {
        name: cost.instructions_per_score for name, cost in costs.items()
    }
    assert 0.5 < counts['forward_kernel'] <= 1.5
    assert 0.5 < counts['query_gradient_kernel'] <= 1.5
    keys = counts['key_gradient_kernel'], counts['table_gradient_kernel']
    assert 1.0 < sum(keys) <= 3.0
    assert not any(cost.spills for cost in costs.values()), costs
