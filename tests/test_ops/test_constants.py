# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is remembered is what would be made, and nobody else's."""

import pytest
import torch
from fake_cuda import fake_cuda
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from versions import needs_torch

from mmdat.ops import constants
from mmdat.ops.coordinates import deformed_points_yx, reference_points_yx


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(constants, '_kept', {})


def points(like, size=(3, 5)):
    return reference_points_yx(*size, 'dat', like)


def test_made_once_for_each_size_type_and_device():
    like = torch.zeros(0)
    first = points(like)
    assert points(like) is first
    for other in (
        points(like, (5, 3)),
        points(like.double()),
        points(like.to('meta')),
        reference_points_yx(3, 5, 'dat_pp', like),
    ):
        assert other is not first
    torch.testing.assert_close(points(like.double()).float(), first)


def test_what_somebody_changes_is_made_again():
    like = torch.zeros(0)
    wanted = points(like).clone()
    points(like).zero_()
    assert torch.equal(points(like), wanted)


def test_made_in_inference_mode_it_serves_training():
    offset_yx = torch.zeros(3, 5, 2)
    with torch.inference_mode():
        deformed_points_yx(offset_yx, 'dat', 2)
    offset_yx.requires_grad_()
    deformed_points_yx(offset_yx, 'dat', 2).sum().backward()
    assert offset_yx.grad is not None


@needs_torch('2.5')
def test_fake_tensors_stay_with_their_mode():
    for _ in range(2):
        with fake_cuda():
            like = torch.zeros(0, device='cuda')
            assert isinstance(points(like), FakeTensor)
            assert points(like) is points(like)
    assert type(points(torch.zeros(0))) is torch.Tensor


def test_traces_have_their_own():
    graph = make_fx(lambda x: x + points(x))(torch.zeros(3, 5, 2))
    assert 'arange' in graph.code
    assert type(points(torch.zeros(0))) is torch.Tensor


def test_few_and_small_ones_are_kept(monkeypatch):
    monkeypatch.setattr(constants, 'MAX_CONSTANTS', 4)
    like = torch.zeros(0)
    for n in range(1, 9):
        points(like, (n, n))
    assert len(constants._kept) == 4
    monkeypatch.setattr(constants, 'MAX_ELEMENTS', 10)
    assert points(like, (20, 20)) is not points(like, (20, 20))
