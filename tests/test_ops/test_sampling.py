# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
from agreement import assert_close, random_map
from oracle.bilinear import sample_points

from mmdat.ops import sample_at_points, sampling


def random_points(*shape):
    generator = torch.Generator().manual_seed(1)
    return 2.6 * torch.rand(*shape, 2, generator=generator).double() - 1.3


@pytest.mark.parametrize('size', [(5, 8), (1, 7), (6, 1), (1, 1)])
@pytest.mark.parametrize('groups', [1, 3])
def test_equals_oracle(size, groups):
    x = random_map(*size, 12)
    points = random_points(2, groups, 4, 3)  # some outside the map
    ours = sample_at_points(x, points)
    for image in range(2):
        for group in range(groups):
            part = slice(group * 12 // groups, (group + 1) * 12 // groups)
            assert_close(
                ours[image, ..., part],
                sample_points(
                    x[image, ..., part].numpy(), points[image, group].numpy()
                ),
                1e-12,
            )


def test_gradients():
    x = random_map(4, 5, 4, batch=1).requires_grad_()
    points = random_points(1, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(sample_at_points, (x, points))


def test_low_precision_maps_are_read_at_exact_positions():
    """A ramp 300 wide, read between its pixels."""
    ramp = torch.arange(300.0)[None, None, :, None]
    at_x = torch.tensor([100.25, 222.5]) / 299 * 2 - 1
    points = torch.stack([torch.zeros(2), at_x], dim=-1)[None, None, None]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        read = sample_at_points(ramp, points).flatten()
    torch.testing.assert_close(
        read, torch.tensor([100.25, 222.5]), atol=1e-3, rtol=0
    )
    halves = sample_at_points(ramp.bfloat16(), points)
    assert halves.dtype == torch.bfloat16
    # The map itself is rounded to 8 bits, the position is not.
    assert (halves.flatten().float() - read).abs().max() <= 1


def test_indexing_equals_grid_sample(monkeypatch):
    """What stands in for it on a GPU that has to repeat itself exactly."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7, 6).double().requires_grad_()
    points = (torch.rand(2, 3, 4, 2, 2) * 2.6 - 1.3).double().requires_grad_()
    results = []
    for forced in (False, True):
        monkeypatch.setattr(
            sampling,
            'must_repeat_exactly',
            lambda _, forced=forced: forced,
        )
        out = sample_at_points(x, points)
        grads = torch.autograd.grad((out * out).sum(), (x, points))
        results.append((out, *grads))
    for plain, indexed in zip(*results):
        torch.testing.assert_close(indexed, plain, atol=1e-12, rtol=0)
