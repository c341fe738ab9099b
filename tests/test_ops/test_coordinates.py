# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
import torch
from agreement import assert_close
from oracle import coordinates as oracle

from mmdat.ops import coordinates, sample_at_points

SIZES = [(7, 7), (3, 8), (1, 6), (5, 1), (1, 1)]
FAMILIES = coordinates.CONVENTIONS


@pytest.mark.parametrize('convention', FAMILIES)
@pytest.mark.parametrize('size', SIZES)
def test_grids_equal_oracle(convention, size):
    like = torch.zeros((), dtype=torch.float64)
    assert_close(
        coordinates.reference_points_yx(*size, convention, like),
        oracle.reference_yx(*size, convention),
        1e-14,
    )
    y, x = (coordinates.query_axis(n, convention, like) for n in size)
    grid = torch.stack(torch.meshgrid(y, x, indexing='ij'), dim=-1)
    assert_close(grid, oracle.query_yx(*size, convention), 1e-14)


@pytest.mark.parametrize('convention', FAMILIES)
@pytest.mark.parametrize('offset_range', [-1, 0, 2, 5.5])
@pytest.mark.parametrize('size', SIZES)
def test_deformed_points_equal_oracle(convention, offset_range, size):
    generator = torch.Generator().manual_seed(0)
    offset_yx = torch.randn(*size, 2, generator=generator).double()
    ours = coordinates.deformed_points_yx(offset_yx, convention, offset_range)
    wanted = oracle.deformed_points_yx(
        offset_yx.numpy(), convention, offset_range
    )
    assert_close(ours, wanted, 1e-13)
    assert ours.isfinite().all()


def test_points_without_a_range_stay_on_the_map():
    offset_yx = 100 * torch.randn(3, 4, 2)
    points = coordinates.deformed_points_yx(offset_yx, 'dat_pp', -1)
    assert points.abs().max() == 1


@pytest.mark.parametrize('size', [(4, 9), (9, 4)])
def test_dat_pp_queries_lie_on_the_pixels(size):
    """An unmoved grid reads the map as it is, on no account transposed."""
    x = torch.randn(2, *size, 6)
    like = torch.zeros(())
    axes = (coordinates.query_axis(n, 'dat_pp', like) for n in size)
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
    samples = sample_at_points(x, grid.expand(2, 3, -1, -1, -1))
    torch.testing.assert_close(samples, x, atol=1e-5, rtol=0)
