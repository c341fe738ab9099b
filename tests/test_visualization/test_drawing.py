# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is drawn is what was recorded, in place and in proportion."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure
from PIL import Image

from mmdat import DAT
from mmdat.utils.errors import UserError
from mmdat.visualization import (
    DATRecorder,
    Frame,
    attention_figure,
    draw_attention,
    draw_points,
    offset_statistics,
    points_figure,
)
from mmdat.visualization.figures import save, to_array
from mmdat.visualization.movie import find_checkpoints, make_movie

ARCH = dict(
    embed_dims=[8, 16, 24, 32],
    depths=[1, 2, 2, 1],
    num_heads=[1, 2, 6, 4],
    offset_groups=[1, 2, 3, 2],
    img_size=64,
)


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(0).integers(0, 255, (192, 288, 3), np.uint8)


@pytest.fixture(scope='module')
def records():
    torch.manual_seed(0)
    model = DAT(ARCH).eval()
    queries = [(30, 60), (210, 120)]
    with torch.no_grad(), DATRecorder(model, queries_xy=queries) as recorder:
        model(torch.rand(1, 3, 192, 288))
    return recorder.records


def axes():
    return Figure().subplots()


def circles(ax):
    """Centres and diameters of the points, drawn after the references."""
    found = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    last = found[-1]
    return np.asarray(last.get_offsets()), np.asarray(last._widths) * 2


def by_place(points, values):
    values = np.asarray(values)
    order = np.lexsort((values, *points.round(6).T))
    return points[order], values[order]


def test_points_are_drawn_where_they_are(records, image):
    record, ax = records[2, 1], axes()
    draw_points(ax, image, record, group=1)
    points = record.points_xy[0, 1].reshape(-1, 2).numpy()
    received = record.by_group(record.received)[0, 1].flatten().numpy()
    centres, diameters = by_place(*circles(ax))
    wanted, received = by_place(points, received)
    np.testing.assert_allclose(centres, wanted)
    # Areas are proportional to the attention received.
    ratio = diameters**2 / received
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    ends = np.array([path.vertices for path in lines.get_paths()])
    np.testing.assert_allclose(
        ends[:, 0], record.reference_xy[0].reshape(-1, 2).numpy()
    )
    np.testing.assert_allclose(ends[:, 1], points)


def test_all_groups_are_drawn(records, image):
    ax = axes()
    draw_points(ax, image, records[2, 1])
    assert len(circles(ax)[0]) == 3 * 6 * 9


@pytest.mark.parametrize(('head', 'group'), [(0, 0), (3, 1), (5, 2)])
def test_attention_of_a_head_is_on_the_points_of_its_group(
    head, group, records, image
):
    record, ax = records[2, 1], axes()
    draw_attention(ax, image, record, query=1, head=head)
    centres, diameters = by_place(*circles(ax))
    wanted, weights = by_place(
        record.points_xy[0, group].reshape(-1, 2).numpy(),
        record.weights[0, head, 1].flatten().numpy(),
    )
    np.testing.assert_allclose(centres, wanted)
    ratio = diameters**2 / weights
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    (star,) = ax.lines
    np.testing.assert_allclose(
        star.get_xydata()[0], record.queries_xy[0, 1].numpy()
    )


def test_average_over_heads(records, image):
    record, ax = records[2, 1], axes()
    colours = draw_attention(ax, image, record, query=0)
    weights = record.weights[0, :, 0].unflatten(0, (3, 2)).mean(1) / 3
    assert weights.sum().item() == pytest.approx(1)
    assert colours.norm.vmax == pytest.approx(weights.max().item())
    assert len(circles(ax)[0]) == 3 * 6 * 9


def test_axes_show_points_a_little_outside():
    torch.manual_seed(0)
    model = DAT(dict(family='dat', **ARCH)).eval()
    frame = Frame((64, 96), (1.0, 1.0), (20.0, 0.0))  # 20 columns cut off
    with torch.no_grad(), DATRecorder(model, frames=frame) as recorder:
        model(torch.rand(1, 3, 64, 96))
    ax = axes()
    draw_points(ax, np.zeros((64, 96, 3), np.uint8), recorder[2, 1])
    left, right = ax.get_xlim()
    # As far as there are points, and a tenth of the picture at most.
    assert left == pytest.approx(recorder[2, 1].points_xy[..., 0].min())
    assert -0.5 - 9.6 < left < -0.5 and right == 95.5
    frame = Frame((64, 96), (1.0, 1.0), (50.0, 0.0))
    with torch.no_grad(), DATRecorder(model, frames=frame) as recorder:
        model(torch.rand(1, 3, 64, 96))
    draw_points(ax, np.zeros((64, 96, 3), np.uint8), recorder[2, 1])
    assert ax.get_xlim()[0] == pytest.approx(-0.5 - 9.6)


def panels(figure):
    """Titles of the panels with something in them."""
    return [a.get_title() for a in figure.axes if a.images and a.get_title()]


def test_figures_have_their_panels(records, image, tmp_path):
    one, every = [records[2, 1]], list(records.values())
    assert panels(points_figure(image, one)) == [
        'group 0',
        'group 1',
        'group 2',
    ]
    assert panels(points_figure(image, one, 2)) == ['group 2']
    assert panels(points_figure(image, every)) == [
        'stage 1, block 1 (stride 8)',
        'stage 2, block 1 (stride 16)',
        'stage 3, block 0 (stride 32)',
    ]
    assert panels(attention_figure(image, one)) == [
        'picture',
        'query A',
        'query B',
    ]
    assert panels(attention_figure(image, one, [1, 4])) == [
        'picture',
        'query A, head 1 (group 0)',
        'query A, head 4 (group 2)',
        'picture',
        'query B, head 1 (group 0)',
        'query B, head 4 (group 2)',
    ]
    assert len(panels(attention_figure(image, every))) == 7
    figure = points_figure(image, one)
    array = to_array(figure)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.std() > 20
    assert save(figure, tmp_path / 'new' / 'a.png').stat().st_size > 10000


def test_statistics_by_hand(records):
    numbers = offset_statistics([records[2, 1], records[3, 0]])
    assert list(numbers) == [
        f'stage{stage}_{what}'
        for stage in (2, 3)
        for what in ('displacement', 'outside', 'clamped')
    ]
    record = records[2, 1]
    x, y = (record.points_xy - record.reference_xy[:, None]).unbind(-1)
    assert numbers['stage2_displacement'] == pytest.approx(
        (x**2 + y**2).sqrt().mean().item()
    )
    assert numbers['stage2_outside'] == 0
    # Of 6 x 9 points the last row and column start beyond the edge.
    assert 0.1 < numbers['stage2_clamped'] < 0.9
    outside = record.points_xy[..., 0] > 40
    cut = offset_statistics([replace(record, inside=~outside)])
    assert cut['stage2_outside'] == outside.double().mean().item() > 0


def test_movie_of_two_checkpoints(records, image, tmp_path):
    one = records[2, 1]
    two = replace(one, points_xy=one.points_xy + 20)
    frames = [('one', [one]), ('two', [two])]
    out = make_movie(image, frames, tmp_path / 'a' / 'm.gif', fps=4)
    with Image.open(out) as movie:
        assert movie.n_frames == 2
        first = np.asarray(movie.convert('RGB')).astype(int)
        movie.seek(1)
        assert movie.info['duration'] == 250
        second = np.asarray(movie.convert('RGB')).astype(int)
    assert first.shape == second.shape
    assert np.abs(first - second).mean() > 1
    with pytest.raises(UserError, match='a .gif or .mp4 file; got m.avi'):
        make_movie(image, frames, 'm.avi')


def test_mp4_without_ffmpeg(records, image, monkeypatch):
    from mmdat.visualization import movie

    monkeypatch.setattr(movie.FFMpegWriter, 'isAvailable', lambda: False)
    with pytest.raises(UserError, match='needs the program ffmpeg'):
        make_movie(image, [('one', [records[2, 1]])], 'm.mp4')


def test_checkpoints_in_the_order_of_training(tmp_path):
    for name in ('epoch_10', 'epoch_9', 'epoch_100', 'best_x', 'last'):
        (tmp_path / f'{name}.pth').touch()
    assert [p.stem for p in find_checkpoints([tmp_path])] == [
        'epoch_9',
        'epoch_10',
        'epoch_100',
    ]
    files = [tmp_path / 'last.pth', tmp_path / 'epoch_9.pth']
    assert find_checkpoints(files) == files
    with pytest.raises(UserError, match='There is no checkpoint or work dir'):
        find_checkpoints([tmp_path / 'none'])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='max_keep_ckpts=-1'):
        find_checkpoints([tmp_path / 'empty'])
