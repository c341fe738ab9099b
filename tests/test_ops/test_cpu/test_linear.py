# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
import torch.nn.functional as F
from agreement import UGLY_SIZES
from torch import library, nn
from versions import needs_torch

from mmdat.models import fused
from mmdat.models.fused import project
from mmdat.ops.cpu.linear import linear


@pytest.mark.parametrize('size', UGLY_SIZES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@torch.no_grad()
def test_is_linear(size, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(5, 7).to(dtype)
    x = torch.randn(2, *size, 5, dtype=dtype)
    wanted = layer(x)
    torch.testing.assert_close(linear(x, layer.weight, layer.bias), wanted)
    turned = linear(x.transpose(1, 2), layer.weight, layer.bias)
    torch.testing.assert_close(turned, wanted.transpose(1, 2))
    nothing = linear(x[:0], layer.weight, layer.bias)
    assert nothing.shape == (0, *size, 7)


@needs_torch('2.4')
def test_runs_where_it_is_exactly_the_layer(monkeypatch):
    calls = []

    def count(*args):
        calls.append(1)
        return linear(*args)

    monkeypatch.setattr(fused, 'linear', count)
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    project(layer, x)
    assert not calls  # it has no backward pass
    with torch.no_grad():
        project(layer, x)
        assert len(calls) == 1
        project(layer.bfloat16(), x.bfloat16())
        with torch.autocast('cpu', torch.bfloat16):
            project(layer.float(), x)
        project(nn.Linear(3, 2, bias=False), x)
        with fused.disabled():
            project(layer, x)
        monkeypatch.setenv('MMDAT_FUSED', '0')
        project(layer, x)
    assert len(calls) == 1


@needs_torch('2.4')
def test_registered_as_torch_wants_it():
    args = torch.randn(4, 3), torch.randn(2, 3), torch.randn(2)
    library.opcheck(torch.ops.mmdat.linear.default, args)


@needs_torch('2.4')
@torch.no_grad()
def test_compilers_leave_it_whole():
    layer, x, graphs = nn.Linear(3, 2), torch.randn(1, 4, 3), []

    def look(graph, _):
        graphs.append(str(graph.graph))
        return graph

    def run(x):
        return project(layer, x)

    compiled = torch.compile(run, backend=look, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1 and 'mmdat.linear' in graphs[0]


@torch.no_grad()
def test_graphs_see_a_layer():
    class Projection(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return project(self.layer, x)

    traced = torch.jit.trace(Projection(), torch.randn(4, 3))
    assert 'aten::linear' in str(traced.inlined_graph)


@pytest.mark.parametrize('grad', [False, True])
def test_others_and_those_with_hooks_are_called(grad):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, calls = torch.randn(2, 4, 3), []
    hooked, doubled = nn.Linear(3, 2), Doubled(3, 2)
    hooked.register_forward_hook(lambda *_: calls.append(1))
    with torch.set_grad_enabled(grad):
        for layer, factor in ((hooked, 1), (doubled, 2)):
            wanted = factor * F.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(project(layer, x), wanted)
    assert calls == [1]
