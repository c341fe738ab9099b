# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Curves of trainings, from files as mmengine writes them."""

import json

import numpy as np
import pytest

from mmdat.utils.errors import UserError
from mmdat.visualization.curves import (
    Run,
    choose_curves,
    curves_figure,
    name_apart,
    read_run,
    smooth,
)


def write(folder, *entries):
    path = folder / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(json.dumps(e) for e in entries) + '\n')
    return path


def train(epoch, step, loss):
    return dict(lr=0.1, loss=loss, epoch=epoch, iter=step, step=step)


def test_a_resumed_run_is_one_curve(tmp_path):
    write(
        tmp_path / '20260101_000000',
        train(1, 10, 5.0),
        train(1, 20, 4.0),
        {'coco/mAP': 0.1, 'step': 1},
        train(2, 30, 3.0),
        train(2, 40, 2.0),
    )
    path = write(
        tmp_path / '20260102_000000',
        train(2, 30, 2.5),
        train(2, 40, 1.5),
        {'coco/mAP': 0.2, 'step': 2},
    )
    with path.open('a') as file:
        file.write('{"loss": 1.0, "st')  # killed while it wrote
    run = read_run(tmp_path)
    np.testing.assert_array_equal(
        run.curves['loss'], [[10, 20, 30, 40], [5, 4, 2.5, 1.5]]
    )
    # Said by epoch, drawn at iterations.
    np.testing.assert_array_equal(
        run.curves['coco/mAP'], [[20, 40], [0.1, 0.2]]
    )
    assert run.name == tmp_path.name
    again = read_run(tmp_path / '20260101_000000')
    assert again.curves['loss'].shape == (2, 4)


def test_a_run_by_iterations(tmp_path):
    entries = [dict(loss=1.0, iter=5, step=5), {'mIoU': 3.0, 'step': 5}]
    write(tmp_path / 'a', *entries)
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.curves['mIoU'], [[5], [3]])


def test_curves_are_chosen_by_name_or_its_beginning():
    curve = np.array([[1.0, 2], [3, 4]])
    names = 'lr', 'loss', 'loss_mask', 'coco/mAP', 'points/stage2_outside'
    runs = [Run('a', {}), Run('b', dict.fromkeys(names, curve))]
    assert choose_curves(runs) == ['loss', 'coco/mAP']
    assert choose_curves(runs, ['loss']) == ['loss']
    assert choose_curves(runs, ['loss_', 'lr']) == ['loss_mask', 'lr']
    with pytest.raises(UserError, match='No run logged acc; there are lr,'):
        choose_curves(runs, ['acc'])


def test_smoothing():
    values = np.array([4.0, 0, 0])
    np.testing.assert_array_equal(smooth(values, 0), values)
    # Weights 1/4, 1/2, 1 of the past, over their sum.
    np.testing.assert_allclose(smooth(values, 0.5), [4, 4 / 3, 4 / 7])


def test_runs_beside_each_other():
    steps = np.arange(1.0, 21)
    runs = [
        Run('a', {'loss': np.stack([steps, 1 / steps])}),
        Run('b', {'loss': np.stack([steps, 2 / steps]), 'mAP': np.eye(2)}),
    ]
    figure = curves_figure(runs, ['loss', 'mAP'], 0.9, True, True)
    loss, metric = figure.axes
    assert (loss.get_xscale(), loss.get_yscale()) == ('log', 'log')
    assert len(loss.lines) == 4 and len(metric.lines) == 2
    np.testing.assert_array_equal(loss.lines[2].get_ydata(), 2 / steps)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ['a', 'b']


def test_names_are_told_apart():
    runs = [Run('a', {}), Run('a', {}), Run('b', {})]
    named = name_apart(runs, ['x/a', 'y/a', 'z/b'])
    assert [run.name for run in named] == ['x/a', 'y/a', 'b']


def test_a_folder_without_scalars(tmp_path):
    with pytest.raises(UserError, match='name the work dir of a training'):
        read_run(tmp_path)
