# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From map to map all backends are the same, and pieces keep nothing else."""

import pytest
import torch
from agreement import UGLY_SIZES
from torch import library
from torch.utils.flop_counter import FlopCounterMode
from versions import needs_torch

from mmdat.ops import window_self_attention
from mmdat.ops.backends import window_pieces
from mmdat.ops.norm import Norm
from mmdat.ops.windows import WindowLayout

pytestmark = needs_torch('2.4')


def inputs(size, window, shift, heads=3, dim=4, dtype=torch.float64, batch=2):
    torch.manual_seed(0)
    dim *= heads
    shapes = [(batch, *size, dim), (3 * dim, dim), (3 * dim,), (dim, dim)]
    shapes += [(dim,), ((2 * window - 1) ** 2, heads)]
    tensors = [
        torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes
    ]
    return tensors, WindowLayout(*size, window, shift)


def gradients(tensors, layout, backend):
    out = window_self_attention(*tensors, layout, backend=backend)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype)
    return out, *torch.autograd.grad(
        (out * weight.view(out.shape)).sum(), tensors
    )


@pytest.mark.parametrize('piece', [1, 30, 2048])
@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('window', [3, 4])
@pytest.mark.parametrize('size', UGLY_SIZES)
def test_pieces_equal_reference(size, window, shifted, piece, monkeypatch):
    monkeypatch.setattr(window_pieces, 'PIECE_ROWS', piece)
    args = inputs(size, window, (window + 1) // 2 if shifted else 0)
    ours, wanted = (gradients(*args, b) for b in ('pieces', 'reference'))
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('with_norm', [False, True])
@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('piece', [30, 2048])
def test_norm_and_sum(piece, shift, with_norm, residual, monkeypatch):
    monkeypatch.setattr(window_pieces, 'PIECE_ROWS', piece)
    tensors, layout = inputs((5, 7), 3, shift)
    layer = [torch.randn(12).double().requires_grad_() for _ in range(2)]

    def run(*tensors, backend):
        *tensors, weight, bias = tensors
        norm = Norm(weight, bias, 0.1) if with_norm else None
        how = dict(norm=norm, residual=residual, backend=backend)
        return window_self_attention(*tensors, layout, **how)

    ours, wanted = (
        torch.autograd.grad(
            run(*tensors, *layer, backend=backend).square().mean(),
            tensors + layer * with_norm,
        )
        for backend in ('pieces', 'reference')
    )
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)
    by_hand = Norm(*layer, 0.1)(tensors[0]) if with_norm else tensors[0]
    by_hand = window_self_attention(
        by_hand, *tensors[1:], layout, backend='reference'
    )
    torch.testing.assert_close(
        run(*tensors, *layer, backend='pieces'),
        by_hand + tensors[0] if residual else by_hand,
    )


def test_float32_is_as_near_as_plain(monkeypatch):
    monkeypatch.setattr(window_pieces, 'PIECE_ROWS', 200)
    tensors, layout = inputs((19, 23), 7, 4, dim=16, dtype=torch.float32)
    ours, theirs = (
        gradients(tensors, layout, backend)
        for backend in ('pieces', 'reference')
    )
    exact = [t.detach().double().requires_grad_() for t in tensors]
    exact = gradients(exact, layout, 'reference')
    for a, b, c in zip(ours, theirs, exact, strict=True):
        room = 1e-6 * c.abs().max()
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + room


def test_gradcheck():
    tensors, layout = inputs((4, 5), 2, 1, heads=2, dim=2, batch=1)
    assert torch.autograd.gradcheck(
        lambda *args: window_self_attention(*args, layout, backend='pieces'),
        tensors,
        fast_mode=True,
    )


def test_maps_of_other_layouts():
    (x, *weights), layout = inputs((4, 6), 3, 2)
    x = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
    ours, wanted = (
        window_self_attention(x, *weights, layout, backend=backend)
        for backend in ('pieces', 'reference')
    )
    torch.testing.assert_close(ours, wanted)


def test_of_the_activations_only_the_map_is_kept():
    tensors, layout = inputs((20, 30), 7, 4, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        window_self_attention(*tensors, layout, backend='pieces')
    kept = {t.untyped_storage().data_ptr(): t.shape for t in kept}
    for tensor in tensors:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    # The bias of all pairs of a window, and where in the table it is from.
    assert sorted(kept.values(), key=len) == [(49**2,), (3, 49, 49)]


def test_choice_and_reasons():
    tensors, layout = inputs((4, 4), 2, 0)

    def explain(*tensors, **kwargs):
        return window_self_attention(*tensors, layout, explain=True, **kwargs)

    assert explain(*tensors) == dict(pieces=None, tiled=None, reference=None)
    assert 'dropout' in explain(*tensors, dropout=0.1)['pieces']
    low = [t.bfloat16() for t in tensors]
    assert 'float32 or float64' in explain(*low)['pieces']
    with torch.autocast('cpu', torch.bfloat16):
        assert 'autocast' in explain(*tensors)['pieces']
    with pytest.raises(ValueError, match='pieces: it has no dropout'):
        window_self_attention(*tensors, layout, dropout=0.1, backend='pieces')


def test_is_what_runs_if_nothing_is_asked_for(monkeypatch):
    tensors, layout = inputs((4, 4), 2, 0)
    calls = []
    linear = window_pieces.linear
    monkeypatch.setattr(
        window_pieces, 'linear', lambda *a: calls.append(1) or linear(*a)
    )
    window_self_attention(*tensors, layout)
    assert calls
    calls.clear()
    window_self_attention(*tensors, layout, backend='tiled')
    assert not calls


def test_operations_are_counted():
    tensors, layout = inputs((8, 8), 4, 0)

    def count(backend):
        with FlopCounterMode(display=False) as counter:
            window_self_attention(*tensors, layout, backend=backend)
        return counter.get_total_flops()

    assert count(None) == count('tiled') > 0


def test_registered_as_torch_wants_it():
    tensors, layout = inputs((4, 5), 3, 2, dtype=torch.float32)
    *tensors, table = tensors
    bias = torch.randn(table.shape[1], 9, 9, requires_grad=True)
    library.opcheck(
        torch.ops.mmdat.window_self_attention.default,
        (*tensors, bias, layout.size, layout.shift),
    )
    layer = [torch.randn(12, requires_grad=True) for _ in range(2)]
    library.opcheck(
        torch.ops.mmdat.window_self_attention.default,
        (*tensors, bias, layout.size, layout.shift, *layer, 0.1, True),
    )


def test_no_second_derivatives():
    (x, *weights), layout = inputs((4, 4), 2, 0)
    out = window_self_attention(x, *weights, layout, backend='pieces')
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()
