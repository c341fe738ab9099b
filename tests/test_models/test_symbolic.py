# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""torch.fx.symbolic_trace and torchvision's feature extractor."""

import pytest
import torch
from torch.fx import symbolic_trace

from mmdat.models import DAT

KINDS = {'dat': ['LS', 'LX', 'ED', 'QD'], 'dat_pp': ['ND', 'ND', 'FD', 'PD']}


def build(family, **kwargs):
    torch.manual_seed(0)
    letters = KINDS[family]
    arch = dict(
        family=family,
        embed_dims=16,
        depths=[len(stage) for stage in letters],
        num_heads=2,
        attentions=letters,
    )
    return DAT(arch, img_size=64, **kwargs)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('family', KINDS)
def test_a_graph_computes_what_the_model_does(family, train):
    model = build(family, drop_path_rate=0.4, with_cp=True).train(train)
    graph = symbolic_trace(model)
    called = {n.target for n in graph.graph.nodes if n.op == 'call_module'}
    assert 'stages.2.blocks.1' in called
    for size in [(64, 64), (50, 71), (5, 37)]:
        x = torch.rand(2, 3, *size).to(memory_format=torch.channels_last)
        found = []
        for run in (graph, model):
            torch.manual_seed(1)
            found.append(run(x))
        for got, wanted in zip(*found, strict=True):
            assert torch.equal(got, wanted)
            assert got.stride() == wanted.stride()
    sum(out.mean() for out in graph(x)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_features_by_name():
    extraction = pytest.importorskip('torchvision.models.feature_extraction')
    model = build('dat_pp').eval()
    extract = extraction.create_feature_extractor(
        model, {'stages.1.blocks.0': 'near', 'stages.2': 'far'}
    )
    seen = {}
    for name, module in (
        ('near', model.stages[1].blocks[0]),
        ('far', model.stages[2]),
    ):
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, out)
        )
    x = torch.rand(1, 3, 40, 56)
    found = extract(x)
    model(x)
    assert set(found) == set(seen)
    for name, value in found.items():
        torch.testing.assert_close(value, seen[name])
