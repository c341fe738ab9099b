# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
from agreement import (
    UGLY_SIZES,
    assert_close,
    published,
    random_map,
    randomise,
)
from oracle.window import shifted_window_attention, window_attention

from mmdat.models import DAT
from mmdat.models.attention import WindowAttention

DIM, HEADS = 12, 3


@pytest.mark.parametrize('size', UGLY_SIZES)
@pytest.mark.parametrize('window', [2, 5, 7])
@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('backend', [None, 'sdpa', 'reference'])
def test_equals_oracle(size, window, shifted, backend):
    shift = (window + 1) // 2 if shifted else 0
    attention = randomise(
        WindowAttention(DIM, HEADS, window, shift, backend=backend)
    )
    oracle = shifted_window_attention if shifted else window_attention
    x = random_map(*size, DIM)
    wanted = [
        oracle(one.numpy(), published(attention), HEADS, window) for one in x
    ]
    assert_close(attention(x), wanted)


def test_shift_is_the_ceiling_of_half_a_window():
    small = dict(
        embed_dims=[8] * 4, depths=[2] * 4, num_heads=[2] * 4, family='dat'
    )
    for window, shift in ((7, 4), (12, 6)):
        blocks = DAT(small, window_size=window).stages[0].blocks
        assert [b.attn.shift for b in blocks] == [0, shift]


@pytest.mark.parametrize('shift', [0, 2])
def test_gradients_are_exact(shift):
    attention = randomise(WindowAttention(4, 2, 3, shift))
    x = random_map(4, 7, 4, batch=1).requires_grad_()
    parameters = list(attention.parameters())
    assert torch.autograd.gradcheck(
        lambda *_: attention(x), (x, *parameters), fast_mode=True
    )


@pytest.mark.parametrize('name', ['proj_qkv', 'proj_out'])
def test_layers_with_hooks_are_called(name):
    """So that adapters, pruning and profilers see what passes through."""
    attention, calls = randomise(WindowAttention(4, 2, 3, 2)), []
    x = random_map(4, 7, 4)
    wanted = attention(x)
    layer = attention.get_submodule(name)
    layer.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(attention(x), wanted)
    assert calls == [1]
