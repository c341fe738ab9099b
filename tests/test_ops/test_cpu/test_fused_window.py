# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A norm and attention in windows in chunks are the layers."""

import pytest
import torch
import torch.nn.functional as F
from agreement import UGLY_SIZES
from torch import library
from torch.utils.flop_counter import FlopCounterMode
from versions import needs_torch

from mmdat.models import fused
from mmdat.models.attention import WindowAttention
from mmdat.ops import window_attention
from mmdat.ops.cpu import fused_window
from mmdat.ops.window_attention import window_bias
from mmdat.ops.windows import WindowLayout, join_windows, split_windows

pytestmark = needs_torch('2.4')

EPS = 0.1


def inputs(size, window, shift, heads=3, dim=4, dtype=torch.float64, batch=2):
    torch.manual_seed(0)
    dim *= heads
    shapes = [(batch, *size, dim), (dim,), (dim,), (3 * dim, dim), (3 * dim,)]
    shapes += [(dim, dim), (dim,), ((2 * window - 1) ** 2, heads)]
    tensors = [
        torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes
    ]
    return tensors, WindowLayout(*size, window, shift)


def ours(x, weight, bias, *weights, layout):
    *weights, table = weights
    return fused_window.window_attention(
        x,
        (weight, bias, EPS),
        (*weights, window_bias(table, layout.size)),
        (layout.size, layout.shift),
    )


def plain(x, weight, bias, *weights, layout):
    qkv_weight, qkv_bias, out_weight, out_bias, table = weights
    x = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    qkv = F.linear(split_windows(x, layout), qkv_weight, qkv_bias)
    qkv = qkv.unflatten(-1, (3, table.shape[1], -1))
    out = window_attention(*qkv.unbind(3), table, layout, backend='reference')
    return join_windows(
        F.linear(out.flatten(-2), out_weight, out_bias), layout
    )


def gradients(run, tensors, layout):
    out = run(*tensors, layout=layout)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype)
    return out, *torch.autograd.grad(
        (out * weight.view(out.shape)).sum(), tensors
    )


@pytest.mark.parametrize('chunk', [1, 30, 2048])
@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('window', [3, 4])
@pytest.mark.parametrize('size', UGLY_SIZES)
def test_agrees_in_float64(size, window, shifted, chunk, monkeypatch):
    monkeypatch.setattr(fused_window, 'CHUNK_ROWS', chunk)
    args = inputs(size, window, (window + 1) // 2 if shifted else 0)
    for a, b in zip(gradients(ours, *args), gradients(plain, *args)):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
    tensors, layout = args
    with torch.no_grad():
        torch.testing.assert_close(
            ours(*tensors, layout=layout), plain(*tensors, layout=layout)
        )


def test_float32_is_as_near_as_plain(monkeypatch):
    monkeypatch.setattr(fused_window, 'CHUNK_ROWS', 200)
    tensors, layout = inputs((19, 23), 7, 4, dim=16, dtype=torch.float32)
    mine, theirs = (gradients(run, tensors, layout) for run in (ours, plain))
    exact = [t.detach().double().requires_grad_() for t in tensors]
    exact = gradients(plain, exact, layout)
    for a, b, c in zip(mine, theirs, exact, strict=True):
        room = 1e-6 * c.abs().max()
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + room


def test_gradcheck():
    tensors, layout = inputs((4, 5), 2, 1, heads=2, dim=2, batch=1)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(
            lambda *args: ours(*args, layout=layout), tensors, fast_mode=True
        )


def test_maps_of_other_layouts():
    (x, *weights), layout = inputs((4, 6), 3, 2)
    x = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(
        ours(x, *weights, layout=layout), plain(x, *weights, layout=layout)
    )


def test_of_the_activations_only_the_map_is_kept():
    tensors, layout = inputs((20, 30), 7, 4, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        ours(*tensors, layout=layout)
    kept = {t.untyped_storage().data_ptr(): t.shape for t in kept}
    for tensor in tensors:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    # The bias of all pairs of a window, and where in the table it is from.
    assert sorted(kept.values(), key=len) == [(49**2,), (3, 49, 49)]


def module(**kwargs):
    torch.manual_seed(0)
    return torch.nn.LayerNorm(8), WindowAttention(8, 2, 3, 2, **kwargs)


def test_runs_where_it_is_exactly_the_layers(monkeypatch):
    norm, attention = module()
    x = torch.randn(2, 5, 4, 8)
    assert fused._piece(norm, attention, x) is not None
    for backend, runs in (('triton', True), ('sdpa', False)):
        attention.backend = backend  # no backend of windows, and one of them
        assert (fused._piece(norm, attention, x) is not None) == runs
        attention.backend = None
        monkeypatch.setenv('MMDAT_ATTN_BACKEND', backend)
        assert (fused._piece(norm, attention, x) is not None) == runs
        monkeypatch.delenv('MMDAT_ATTN_BACKEND')
    with torch.autocast('cpu', torch.bfloat16):
        assert fused._piece(norm, attention, x) is None
    for rate in ('attn_drop_rate', 'drop_rate'):
        norm, attention = module(**{rate: 0.1})
        assert fused._piece(norm, attention, x) is None
        assert fused._piece(norm, attention.eval(), x) is not None


def test_operations_are_counted():
    norm, attention = module()
    x = torch.randn(2, 6, 6, 8)

    def count():
        with FlopCounterMode(display=False) as counter:
            assert fused._piece(norm, attention, x) is None
            attention(norm(x))
        return counter.get_total_flops()

    found = count()
    attention.backend = 'sdpa'
    assert found == count() > 0


def test_registered_as_torch_wants_it():
    tensors, layout = inputs((4, 5), 3, 2, dtype=torch.float32)
    *tensors, table = tensors
    bias = torch.randn(table.shape[1], 9, 9, requires_grad=True)
    library.opcheck(
        torch.ops.mmdat.window_attention_branch.default,
        (*tensors, bias, EPS, (layout.size, layout.shift)),
    )
