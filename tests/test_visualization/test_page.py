# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The page on visualisation says what works."""

import re
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from mmdat.visualization import DATRecorder, load_model, load_picture

pytest.importorskip('mmpretrain')
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'visualization.md').read_text()
CONFIG = str(ROOT / 'configs' / 'classifier_dat_digits.py')


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_notebook_runs_as_written(tmp_path, capsys, monkeypatch):
    matplotlib.use('Agg')
    image = tmp_path / 'image.png'
    pixels = np.random.default_rng(0).integers(0, 255, (90, 130, 3))
    cv2.imwrite(str(image), pixels)
    notebook, around, config = blocks('python')
    notebook = notebook.replace("'CONFIG', 'CHECKPOINT'", repr(CONFIG))
    names = {}
    exec(notebook.replace("'IMAGE'", repr(str(image))), names)
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
    exec(config, names)
    assert names['custom_hooks'][0]['type'] == 'mmdat.PointsHook'


def test_commands_and_their_options_exist():
    lines = [
        line
        for block in blocks('bash')
        for line in block.splitlines()
        if line.startswith('python ')
    ]
    assert len(lines) == 9
    for line in lines:
        _, script, *rest = line.split()
        source = (ROOT / script).read_text()
        source += (ROOT / 'mmdat/engine/arguments.py').read_text()
        for option in rest:
            if option.startswith('--'):
                assert f"'{option}'" in source, line


def test_pictures_are_there():
    for path in re.findall(r'!\[.*?\]\((.*?)\)', PAGE):
        assert (ROOT / 'docs' / path).is_file()
