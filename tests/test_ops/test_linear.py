# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
import torch.nn.functional as F
from agreement import UGLY_SIZES
from torch.utils.flop_counter import FlopCounterMode

from mmdat.models.layers import Linear
from mmdat.ops.linear import linear


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('size', UGLY_SIZES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_is_linear(size, bias, dtype):
    torch.manual_seed(0)
    layer = Linear(5, 7, bias=bias).to(dtype)
    x = torch.randn(2, *size, 5, dtype=dtype)
    wanted = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
        turned = layer(x.transpose(1, 2))
        torch.testing.assert_close(turned, wanted.transpose(1, 2))
        assert layer(x[:0]).shape == (0, *size, 7)


def test_gradients():
    torch.manual_seed(0)
    layer, x = Linear(3, 2).double(), torch.randn(2, 4, 3).double()
    args = x.requires_grad_(), layer.weight, layer.bias
    assert torch.autograd.gradcheck(linear, args)


def test_low_types_and_autocast_are_left_to_pytorch():
    layer, x = Linear(3, 2), torch.randn(4, 3)
    with torch.no_grad():
        low = layer.bfloat16()(x.bfloat16())
        wanted = F.linear(x.bfloat16(), layer.weight, layer.bias)
        assert torch.equal(low, wanted)
        layer.float()
        with torch.autocast('cpu', torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


@torch.no_grad()
def test_graphs_and_counters_see_a_linear_layer():
    layer, x = Linear(3, 2), torch.randn(4, 3)
    assert 'aten::linear' in str(torch.jit.trace(layer, x).inlined_graph)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 4 * 3 * 2
