# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is drawn is what was recorded, in place and in proportion."""

import json
import re
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
    Findings,
    Frame,
    Picture,
    attention_figure,
    draw_attention,
    draw_points,
    offset_statistics,
    points_figure,
)
from mmdat.visualization.detections import draw_sheet
from mmdat.visualization.drawing import block_points
from mmdat.visualization.figures import save, to_array
from mmdat.visualization.legends import round_down
from mmdat.visualization.movie import find_checkpoints, make_movie
from mmdat.visualization.paper import Row, choose_query, paper_figure
from mmdat.visualization.scale import Scale

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


def left_of(shift):
    """Axes, record and circles of a picture whose left side is cut off."""
    torch.manual_seed(0)
    model = DAT(dict(family='dat', **ARCH)).eval()
    frame = Frame((64, 96), (1.0, 1.0), (shift, 0.0))
    with torch.no_grad(), DATRecorder(model, frames=frame) as recorder:
        model(torch.rand(1, 3, 64, 96))
    ax = axes()
    draw_points(ax, np.zeros((64, 96, 3), np.uint8), recorder[2, 1])
    return ax, recorder[2, 1]


def test_circles_at_the_edge_are_whole():
    ax, _ = left_of(12.0)
    centres, diameters = circles(ax)
    for axis, limits in enumerate((ax.get_xlim(), ax.get_ylim()[::-1])):
        assert limits[0] <= (centres[:, axis] - diameters / 2).min() + 1e-4
        assert limits[1] >= (centres[:, axis] + diameters / 2).max() - 1e-4
    # The picture's edge alone would cut some.
    assert (centres[:, 0] - diameters / 2).min() < -0.5
    assert ax.get_xlim()[0] < -0.5


def test_points_and_lines_far_outside_are_left_out():
    ax, record = left_of(30.0)
    points = record.points_xy.reshape(-1, 2).numpy()
    far = (points[:, 0] < -0.5 - 6.4).sum()
    assert far > 5
    (lines,) = (c for c in ax.collections if isinstance(c, LineCollection))
    ends = np.array([path.vertices for path in lines.get_paths()])
    assert len(circles(ax)[0]) == len(ends) <= len(points) - far
    assert ends[..., 0].min() >= -0.5 - 6.4
    assert ax.get_xlim()[0] <= ends[..., 0].min()
    scale = Scale.of((64, 96), [block_points(record)])
    assert scale.left_out == far


def test_what_the_network_sees_is_outlined(image):
    def outlines(shift, width):
        frame = Frame((192, 288), (1.0, 1.0), (shift, 0.0))
        model = DAT(ARCH).eval()
        with torch.no_grad(), DATRecorder(model, frames=frame) as recorder:
            model(torch.rand(1, 3, 192, width))
        ax = axes()
        draw_points(ax, image, recorder[3, 0])
        return [patch.get_bbox().bounds for patch in ax.patches]

    assert outlines(-32.0, 224) == [(31.5, -0.5, 224.0, 192.0)]
    assert outlines(0.0, 288) == []
    # More than the picture, by padding.
    assert outlines(0.0, 320) == []


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


@pytest.mark.parametrize('draw', [points_figure, attention_figure])
def test_the_legend_of_areas_is_true(draw, records, image):
    """Its circles are as large as those of the panels, on paper."""
    figure = draw(image, list(records.values()))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    panel = [a for a in figure.axes if a.images][-1]
    (x0, _), (x1, _) = panel.transData.transform([(0, 0), (1, 0)])
    inches = (x1 - x0) / figure.dpi
    centres, diameters = circles(panel)
    record = records[3, 0]
    if draw is points_figure:
        weights = record.by_group(record.received)[0].flatten().numpy()
    else:
        weights = record.by_group(record.weights[:, :, 1])[0] / record.groups
        weights = weights.flatten().numpy()
    width = (np.sort(diameters) / np.sqrt(np.sort(weights)))[-1]
    for handle, text in zip(legend.legend_handles, legend.get_texts()):
        share = float(text.get_text().removesuffix(' %')) / 100
        wanted = width * np.sqrt(share) * inches * 72
        assert handle.get_markersize() == pytest.approx(wanted, rel=0.03)


def test_scales_have_few_digits_and_start_at_the_smallest(records, image):
    figure = attention_figure(image, [records[2, 1]])
    figure.draw_without_rendering()
    bar = figure.axes[-1]
    weights = records[2, 1].by_group(records[2, 1].weights)[0] / 3
    assert bar.get_ylim()[0] == pytest.approx(weights.min().item())
    assert 'attention weight, from ' in bar.get_ylabel()
    ticks = [t.get_text() for t in bar.get_yticklabels()]
    assert 2 <= len(ticks) <= 7
    assert all(len(t.removesuffix(' %')) <= 4 for t in ticks)
    assert [round_down(v) for v in (0.0199, 0.05, 7, 1)] == [0.01, 0.05, 5, 1]


def test_letters_stay_letters(records, image, tmp_path):
    figure = points_figure(image, [records[2, 1]], title='random weights')
    pdf = save(figure, tmp_path / 'a.pdf').read_bytes()
    assert b'/FontFile2' in pdf and b'/Type3' not in pdf
    svg = save(figure, tmp_path / 'a.svg').read_text()
    assert 'random weights, stage 2' in svg and '<text' in svg


def test_the_figure_of_the_papers(records, image):
    rows = [Row(image, list(records.values()))] * 2
    figure = paper_figure(rows)
    titles = [a.get_title() for a in figure.axes if a.images]
    assert titles == [
        'query',
        'stage 1, block 1 (stride 8)',
        'stage 2, block 1 (stride 16)',
        'stage 3, block 0 (stride 32)',
        *[''] * 4,
    ]
    panel = figure.axes[6]
    centres, _ = by_place(*circles(panel))
    wanted = records[2, 1].points_xy[0].reshape(-1, 2).numpy()
    np.testing.assert_allclose(centres, by_place(wanted, wanted[:, 0])[0])
    # Pictures of different shapes have no common legend of areas.
    tall = paper_figure([rows[0], Row(image[:, :150], rows[0].records)])
    assert figure.legends and not tall.legends


def test_the_middle_of_an_object_is_asked_about():
    picture = Picture(
        np.zeros((40, 60, 3), np.uint8), torch.zeros(1, 3, 40, 32), FRAME
    )
    masks = np.zeros((1, 40, 60), bool)
    masks[0, 10:21, 30:41] = True
    masks[0, 14:17, 34:37] = False  # not in the hole
    x, y = choose_query(picture, Findings(masks=masks))
    assert masks[0, int(y), int(x)] and abs(x - 35) + abs(y - 15) <= 3
    boxes = np.array([[10.0, 20, 30, 24]])
    assert choose_query(picture, Findings(boxes=boxes)) == (20, 22)
    # The middle of what is seen: x from 7.5 to 39.5.
    assert choose_query(picture, Findings()) == (23.5, 19.5)


FRAME = Frame((40, 60), (1.0, 1.0), (-8.0, 0.0))


def test_a_sheet_says_where_nothing_was_found(tmp_path, monkeypatch):
    Image.new('RGB', (64, 48)).save(tmp_path / 'a.png')
    truth = dict(
        images=[dict(id=1, file_name='a.png', height=48, width=64)],
        annotations=[
            dict(
                id=1,
                image_id=1,
                category_id=1,
                bbox=[3, 1, 20, 10],
                area=200,
                iscrowd=0,
                segmentation=[[3, 1, 23, 1, 23, 11, 3, 11]],
            )
        ],
        categories=[dict(id=1, name='seven')],
    )
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    (tmp_path / 'found.json').write_text('[]')
    arguments = tmp_path / 'truth.json', tmp_path / 'found.json', tmp_path
    out = draw_sheet(*arguments, tmp_path / 'sheet.svg')
    letters = re.findall(r'<text.*?>([^<]+)</text>', out.read_text())
    assert letters.count('none') == 1 and letters.count('seven') == 1


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
    with Image.open(out) as movie:
        palettes = []
        for number in range(2):
            movie.seek(number)
            palettes.append(movie.palette.getdata()[1][:300])
    assert palettes[0] == palettes[1]
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
