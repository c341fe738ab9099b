# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Sampling in one piece is sampling."""

import pytest
import torch
import torch.nn.functional as F
from versions import needs_torch

from mmdat.ops import sampling
from mmdat.ops.cpu import grid_sample as whole_grid_sample

pytestmark = needs_torch('2.4')

SETTINGS = dict(mode='bilinear', padding_mode='zeros', align_corners=True)


def places(*shape):
    """Inside the map, on its edge, and outside."""
    return (1.3 * torch.rand(*shape, 2).double() - 0.65).requires_grad_()


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    maps = torch.randn(3, 2, 4, 5).double().requires_grad_()
    return maps, places(6), places(3, 7)


def gradients(out, tensors):
    weight = torch.linspace(-1, 1, out.numel()).double()
    return torch.autograd.grad((out.flatten() * weight).sum(), tensors)


def test_between_agrees_with_all_differences(tensors):
    maps, to_xy, from_xy = tensors
    plain = F.grid_sample(maps, to_xy[:, None] - from_xy[:, None], **SETTINGS)
    whole = sampling.grid_sample_between(*tensors)
    torch.testing.assert_close(whole, plain)
    for a, b in zip(gradients(whole, tensors), gradients(plain, tensors)):
        torch.testing.assert_close(a, b)


def test_between_keeps_no_differences(tensors):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(tuple(t.shape)), lambda t: t
    ):
        sampling.grid_sample_between(*tensors)
    assert sorted(kept) == [(3, 2, 4, 5), (3, 7, 2), (6, 2)]


def test_gradcheck(tensors):
    assert torch.autograd.gradcheck(sampling.grid_sample_between, tensors)
    maps, _, grid_xy = tensors
    assert torch.autograd.gradcheck(
        whole_grid_sample.grid_sample, (maps, grid_xy[:, :, None])
    )


def test_registered_as_torch_wants_it(tensors):
    maps, _, grid_xy = tensors
    torch.library.opcheck(torch.ops.mmdat.grid_sample_between.default, tensors)
    torch.library.opcheck(
        torch.ops.mmdat.grid_sample.default, (maps, grid_xy[:, :, None])
    )


def test_a_compiler_leaves_it_whole(tensors):
    graphs = []

    def keep(graph, _):
        graphs.append(str(graph.graph))
        return graph

    def sample(maps, to_xy, from_xy):
        return (
            sampling.grid_sample(maps, from_xy[:, :, None]),
            sampling.grid_sample_between(maps, to_xy, from_xy),
        )

    compiled = torch.compile(sample, backend=keep, fullgraph=True)
    for a, b in zip(compiled(*tensors), sample(*tensors), strict=True):
        torch.testing.assert_close(a, b)
        for c, d in zip(
            torch.autograd.grad(a.sum(), tensors, allow_unused=True),
            torch.autograd.grad(b.sum(), tensors, allow_unused=True),
        ):
            torch.testing.assert_close(c, d)
    assert 'mmdat.grid_sample' in graphs[0]
    assert 'mmdat.grid_sample_between' in graphs[0]
