# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Pixels of maps, inputs and pictures, against hand-made numbers."""

import pytest
import torch
from torch import nn

from mmdat import DAT
from mmdat.visualization.frames import Frame, MapGrid, map_grids

SMALL = dict(
    embed_dims=[8, 16, 16, 16], depths=[1] * 4, num_heads=[1, 1, 1, 1]
)


def linearise(module):
    """Only sums of pixels remain of an embedding."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            nn.init.ones_(child.weight)
        else:
            setattr(module, name, nn.Identity())
    return module.double()


@pytest.mark.parametrize('family', ['dat', 'dat_pp'])
def test_a_map_pixel_is_at_the_centre_of_what_it_sees(family):
    backbone = DAT(dict(family=family, **SMALL))
    image = torch.rand(1, 256, 320, 3, dtype=torch.float64)
    image.requires_grad_()
    x = image
    pixels = torch.arange(320.0, dtype=torch.float64)
    parts = backbone.patch_embed, *backbone.downsamples
    for part, grid in zip(parts, map_grids(backbone), strict=True):
        x = linearise(part)(x)
        row, column = x.shape[1] // 2, x.shape[2] // 2 + 1
        (seen,) = torch.autograd.grad(
            x[0, row, column].sum(), image, retain_graph=True
        )
        seen = seen[0].sum(-1)
        y = (seen.sum(1) * pixels[:256]).sum() / seen.sum()
        x_ = (seen.sum(0) * pixels).sum() / seen.sum()
        wanted = grid.centres(x.shape[1:3])[row, column]
        torch.testing.assert_close(torch.stack([x_, y]), wanted)


def test_centres_of_the_two_families():
    dat, dat_pp = (map_grids(DAT(dict(family=f, **SMALL))) for f in FAMILIES)
    # (0 + 0.5) s - 0.5 where patches tile the image, else 0.
    assert dat == tuple(MapGrid(s, (s - 1) / 2) for s in (4, 8, 16, 32))
    assert dat_pp == tuple(MapGrid(s, 0.0) for s in (4, 8, 16, 32))


FAMILIES = 'dat', 'dat_pp'


def test_normalised_positions_in_the_input():
    grid = MapGrid(8, 3.5)
    # On a map of 5 x 9 the corners and the middle of the last row.
    points_yx = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [1.0, 0.0]])
    found = grid.to_input(points_yx, (5, 9))
    assert found.tolist() == [[3.5, 3.5], [67.5, 35.5], [35.5, 35.5]]
    cells = grid.nearest(found + torch.tensor([3.9, -3.9]), (5, 9))
    assert cells.tolist() == [[0, 0], [4, 8], [4, 4]]
    # Outside the map the nearest is at the edge.
    assert grid.nearest(torch.tensor([[-90.0, 900.0]]), (5, 9)).tolist() == [
        [4, 0]
    ]


def test_twice_the_size_and_padding():
    meta = dict(
        ori_shape=(60, 100),
        img_shape=(120, 200),
        scale_factor=(2.0, 2.0),
        batch_input_shape=(128, 224),
    )
    frame = Frame.from_meta(meta)
    # Pixel 0 becomes pixels 0 and 1, whose middle is 0.5.
    xy = torch.tensor([[0.0, 0.0], [99.0, 59.0]])
    assert frame.to_input(xy).tolist() == [[0.5, 0.5], [198.5, 118.5]]
    # Padding starts at 200 and 120.
    edges = torch.tensor([[199.4, 119.4], [199.6, 50.0], [50.0, 119.6]])
    inside = frame.contains(frame.to_picture(edges))
    assert inside.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ('direction', 'wanted'),
    [
        ('horizontal', (191.5, 10.5)),
        ('vertical', (7.5, 109.5 - 0.5 - 0.5)),
        ('diagonal', (191.5, 108.5)),
    ],
)
def test_flips(direction, wanted):
    # 60 x 100 doubled, then flipped, then padded: the padding stays right.
    meta = dict(
        ori_shape=(60, 100, 3),
        img_shape=(120, 200, 3),
        scale_factor=(2.0, 2.0),
        flip=True,
        flip_direction=direction,
    )
    # Pixel (3.5, 5): unflipped at (7.5, 10.5) of 200 x 120.
    frame = Frame.from_meta(meta)
    xy = torch.tensor([3.5, 5.0])
    assert tuple(frame.to_input(xy).tolist()) == wanted
    assert frame.to_picture(frame.to_input(xy)).tolist() == [3.5, 5.0]


def test_crop_at_the_centre():
    # 64 x 96 halved to 32 x 48, of which the middle 32 columns remain.
    meta = dict(
        ori_shape=(64, 96), img_shape=(32, 32), scale_factor=(0.5, 0.5)
    )
    frame = Frame.from_meta(meta)
    # Columns 16 and 17 become column 8, cropped to 0.
    assert frame.to_input(torch.tensor([16.5, 0.5])).tolist() == [0.0, 0.0]
    # What was cut is still part of the picture.
    assert frame.contains(torch.tensor([2.0, 2.0]))


def test_a_frame_of_nothing_done():
    frame = Frame.from_meta(dict(ori_shape=(5, 7)))
    assert frame == Frame((5, 7))


def test_stretching_without_a_scale_factor():
    frame = Frame.from_meta(dict(ori_shape=(30, 40), img_shape=(60, 40)))
    assert frame.scale_xy == (1.0, 2.0)


def test_meta_without_the_original_size():
    with pytest.raises(ValueError, match='must have ori_shape; got img_path'):
        Frame.from_meta(dict(img_path='x'))
