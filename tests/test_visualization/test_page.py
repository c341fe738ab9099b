# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The pages on looking at models and trainings say what works."""

import json
import re
import shlex
import sys
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from test_tools.conftest import run
from test_tools.test_vis_points import DRIVER

from mmdat.visualization import DATRecorder, load_model, load_picture

pytest.importorskip('mmpretrain')
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'visualization.md').read_text()
TRAINING = (ROOT / 'docs' / 'watch_training.md').read_text()
CONFIG = str(ROOT / 'configs' / 'classifier_dat_digits.py')


def blocks(language, page=PAGE):
    return re.findall(rf'```{language}\n(.*?)```', page, re.DOTALL)


def commands(page):
    lines = [
        shlex.split(line, comments=True)
        for block in blocks('bash', page)
        for line in block.splitlines()
    ]
    found = [line for line in lines if line]
    assert all(line[0] == 'python' for line in found)
    return [line[1:] for line in found]


def test_the_notebook_runs_as_written(tmp_path, capsys):
    matplotlib.use('Agg')
    image = tmp_path / 'image.png'
    pixels = np.random.default_rng(0).integers(0, 255, (90, 130, 3))
    cv2.imwrite(str(image), pixels)
    cell, notebook, around = blocks('python')
    files = {"'CONFIG', 'CHECKPOINT'": repr(CONFIG), "'IMAGE'": repr(image)}
    files = {old: new.replace('PosixPath', '') for old, new in files.items()}
    for old, new in files.items():
        cell, notebook = cell.replace(old, new), notebook.replace(old, new)
    shown = []
    exec(cell, dict(display=shown.append))
    assert '<canvas' in shown[0].html
    names = {}
    exec(notebook, names)
    shapes = capsys.readouterr().out.splitlines()[-5:-1]
    assert shapes == [
        'torch.Size([1, 2, 2, 2, 2])',
        'torch.Size([1, 2, 2, 2])',
        'torch.Size([1, 4, 2, 2])',
        'torch.Size([1, 4, 1, 2, 2])',
    ]
    # Around a forward pass of the whole model.
    model = load_model(CONFIG)
    picture = load_picture(model, image)
    from mmpretrain.structures import DataSample

    sample = DataSample(
        metainfo=dict(
            ori_shape=(90, 130),
            img_shape=(64, 64),
            scale_factor=(64 / 130, 64 / 90),
        )
    )
    names = dict(model=model, inputs=picture.inputs, data_samples=[sample])
    exec(around, names)
    assert isinstance(names['recorder'], DATRecorder)
    assert names['frames'] == [picture.frame]
    assert len(names['recorder'].records) == 4


def as_typed(folder, page):
    """Runs all commands of a page, in a folder that looks like the top."""
    for name in ('tools', 'demo', 'configs'):
        (folder / name).symlink_to(ROOT / name)
    listed = commands(page)
    (folder / 'commands.json').write_text(json.dumps(listed))
    out = run(
        *(sys.executable, '-c', DRIVER, folder / 'commands.json'), cwd=folder
    )
    said = [
        json.loads(line[3:])
        for line in out.splitlines()
        if line.startswith('@@ ')
    ]
    assert len(said) == len(listed)
    for command, (code, text) in zip(listed, said):
        assert code == 0 and 'Traceback' not in text, (command, text)
    return [text for _, text in said]


@pytest.mark.slow
def test_every_command_runs_as_typed(tmp_path):
    pytest.importorskip('mmdet')
    said = as_typed(tmp_path, PAGE)
    assert re.search(r'\d 0\.\d\d at \d+', said[0])
    assert (tmp_path / 'explorer.html').stat().st_size < 5e6
    assert 'stage 3, block 1' in said[6]
    for name in ('figure.pdf', 'figure.svg', 'points.pdf', 'attention.svg'):
        assert (tmp_path / name).stat().st_size > 10_000
    for name in ('points.png', 'grad_cam.png', 'points.gif'):
        assert cv2.imread(str(tmp_path / name)) is not None or 'gif' in name


def test_curves_are_drawn_as_typed(tmp_path):
    for name in ('mask_rcnn_dat_digits', 'upernet_dat_digits'):
        path = tmp_path / 'work_dirs' / name / '2026' / 'vis_data'
        path.mkdir(parents=True)
        lines = [
            json.dumps(dict(lr=0.1, loss=9 / i, iter=i, step=i))
            for i in range(1, 30)
        ]
        (path / 'scalars.json').write_text('\n'.join(lines))
    said = as_typed(tmp_path, TRAINING)
    assert said[0].startswith('Curves: 1, runs: 1; ')
    assert said[1].startswith('Curves: 2, runs: 2; ')
    assert cv2.imread(str(tmp_path / 'curves.png')).std() > 10


def test_lines_for_configs(monkeypatch, tmp_path):
    board, wandb, points = blocks('python', TRAINING)
    for task, kind in (
        ('mask_rcnn', 'DetLocalVisualizer'),
        ('upernet', 'SegLocalVisualizer'),
        ('classifier', 'UniversalVisualizer'),
    ):
        for number, line in enumerate((board, wandb)):
            path = tmp_path / f'{task}_{number}.py'
            base = str(ROOT / 'configs' / f'{task}_dat_digits.py')
            path.write_text(f'_base_ = {base!r}\n{line}')
            visualizer = Config.fromfile(str(path)).visualizer
            assert visualizer.type == kind
            kinds = [one.type for one in visualizer.vis_backends]
            wanted = ['TensorboardVisBackend', 'WandbVisBackend'][number]
            assert kinds == ['LocalVisBackend', wanted]
    assert VISUALIZERS.get('Visualizer') is not None
    names = {}
    exec(points, names)
    assert names['custom_hooks'][0]['type'] == 'mmdat.PointsHook'


def test_pictures_are_there():
    for path in re.findall(r'!\[.*?\]\((.*?)\)', PAGE):
        assert (ROOT / 'docs' / path).is_file()
    assert (ROOT / 'docs' / 'images' / 'explorer.html').is_file()
