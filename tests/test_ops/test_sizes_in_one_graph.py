# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""torch.compile(dynamic=True): how many graphs there are for many sizes.

Traced alone, without a compiler behind; on CUDA by tensors without memory.
"""

from contextlib import nullcontext

import pytest
import torch
from fake_cuda import fake_cuda
from versions import has_torch, needs_torch

from mmdat.models import DAT
from mmdat.models.attention import (
    DeformableAttention,
    NeighborhoodAttention,
    WindowAttention,
)
from mmdat.ops.triton import common, probe

pytestmark = needs_torch('2.9')
DIM, HEADS, WINDOW = 16, 2, 7
LAYERS = {
    'windows': lambda: WindowAttention(DIM, HEADS, WINDOW),
    'shifted windows': lambda: WindowAttention(DIM, HEADS, WINDOW, 4),
    'neighbourhoods': lambda: NeighborhoodAttention(DIM, HEADS, 7),
    'deformable': lambda: DeformableAttention(
        DIM, HEADS, 1, (14, 14), 'dat', 5, 1, 2
    ),
    'deformable, strided': lambda: DeformableAttention(
        DIM, HEADS, 1, (14, 14), 'dat_pp', 5, 2, -1
    ),
}
# With and without padding along each axis, square, wide and high. Compilers
# make graphs of their own for maps of one or two windows along an axis.
SIZES = [(15, 22), (16, 25), (50, 84), (21, 28), (22, 30), (28, 28), (90, 30)]


@pytest.fixture(params=['cpu', 'cuda'])
def device(request, monkeypatch):
    """A device; on CUDA the kernels of Triton passed their trial."""
    if request.param == 'cuda':
        if not has_torch('2.11'):
            pytest.skip('before PyTorch 2.11 fake tensors ask for a driver')

        def passed(*_):
            return None

        passed._dynamo_marked_constant = True
        monkeypatch.setattr(common, 'declines', lambda x: None)
        monkeypatch.setattr(common, 'declines_type', lambda x, dtype: None)
        monkeypatch.setattr(probe, 'failure', passed)
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


def trace(layer, sizes, device):
    """The graphs that are made for maps of these sizes, one after another."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        if device == 'cpu':
            return graph.forward
        outputs = graph.graph.output_node().args[0]
        return lambda *_: tuple(x.meta['example_value'] for x in outputs)

    with fake_cuda() if device == 'cuda' else nullcontext():
        layer = layer.to_empty(device=device) if device == 'cuda' else layer
        maps = [torch.zeros(2, *size, device=device) for size in sizes]
    if device == 'cpu':
        maps = [x.normal_() for x in maps]
    run = torch.compile(layer, backend=keep, fullgraph=True, dynamic=True)
    for x in maps:
        got = run(x)
        assert all(out.device.type == device for out in got)
        if device == 'cpu':
            torch.testing.assert_close(got, layer(x), rtol=1e-4, atol=1e-5)
    return graphs


@pytest.mark.parametrize(
    'device, name',
    [
        pytest.param(
            *(device, name),
            # Of the windows one is enough every day.
            marks=[pytest.mark.slow]
            * (device + name == 'cudashifted windows'),
        )
        for device in ('cpu', 'cuda')
        for name in LAYERS
        if device + name != 'cudawindows'
    ],
    indirect=['device'],
)
def test_few_graphs_for_many_sizes(name, device):
    torch.manual_seed(0)
    graphs = trace(LAYERS[name](), [(*size, DIM) for size in SIZES], device)
    # On a CPU small maps have another backend than large ones.
    assert len(graphs) == 1 + (device == 'cpu' and 'deformable' in name)
    if device == 'cuda' and 'window' not in name:
        seen = {str(node.target) for node in graphs[0].graph.nodes}
        op = 'neighborhood' if name == 'neighbourhoods' else 'table'
        assert f'mmdat.{op}_attention.default' in seen


@pytest.mark.slow
@pytest.mark.parametrize('device', ['cuda'], indirect=True)
def test_chunks_do_not_multiply_graphs(device):
    """Plain attention on a GPU, in two chunks of 70 to 120 million scores."""
    layer = DeformableAttention(
        *(DIM, HEADS, 1, (14, 14), 'dat', 5, 1, 2),
        position_bias='log_continuous',
    )
    sizes = [(50, 84, DIM), (60, 90, DIM), (90, 56, DIM)]
    graphs = trace(layer, sizes, device)
    assert len(graphs) == 1
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    attention = [name for name in targets if 'scaled_dot_product' in name]
    assert len(attention) == 2


MODELS = {
    'dat': dict(attentions=['S', 'L', 'D', 'D'], offset_range=2),
    'dat_pp': dict(attentions=['LS', 'NX', 'PQ', 'ED']),
}


@pytest.mark.slow
@pytest.mark.parametrize('family', list(MODELS))
@pytest.mark.parametrize('device', ['cuda'], indirect=True)
def test_models_are_one_graph_on_a_gpu(family, device):
    """For maps of all sizes, and of operators that the kernels are."""
    settings = MODELS[family]
    arch = dict(
        family=family,
        embed_dims=[DIM] * 4,
        depths=len(settings['attentions'][0]),
        num_heads=HEADS,
        mlp_ratio=2,
    )
    model = DAT(arch, img_size=64, **settings)
    sizes = [(3, 100, 140), (3, 131, 97), (3, 200, 333)]
    graphs = trace(model, sizes, device)
    assert len(graphs) == 1
    seen = {str(node.target) for node in graphs[0].graph.nodes}
    assert 'mmdat.table_attention.default' in seen
    assert 'mmdat.sample_at_points.default' in seen
