# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pickle

import pytest

from .conftest import tool

CONFIG = 'configs/classifier_dat_digits.py'


@pytest.mark.slow
def test_trains_and_evaluates(digits, tmp_path):
    data = ['--data-root', f'{digits}/imagenet/']
    log = tool(
        'train.py',
        CONFIG,
        '--work-dir',
        tmp_path,
        *data,
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
    )
    assert 'accuracy/top1' in log
    log = tool(
        'test.py',
        CONFIG,
        tmp_path / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 'test',
        *data,
        '--out',
        tmp_path / 'out.pkl',
        '--show-dir',
        tmp_path / 'pictures',
    )
    assert 'accuracy/top1' in log
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 10
    assert predictions[0]['pred_score'].shape == (10,)
    assert list((tmp_path / 'pictures').rglob('*.*g'))
    test = ['test.py', CONFIG, tmp_path / 'epoch_1.pth', *data, '--tta']
    assert 'accuracy/top1' in tool(*test, '--work-dir', tmp_path / 'tta')
    said = tool(*test, '--show-dir', tmp_path, ok=False)
    assert 'mmpretrain cannot draw' in said.splitlines()[-1]
