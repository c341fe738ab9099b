# Copyright (c) mmdat contributors. Apache-2.0 licence.
import cv2
import numpy as np
import pytest

from .conftest import run, tool

CONFIG = 'configs/upernet_dat_digits.py'


@pytest.mark.slow
def test_trains_and_evaluates(digits, tmp_path):
    data = ['--data-root', f'{digits}/ade/']
    # In two processes, where the SyncBN of UPerNet becomes batch norm.
    log = run(
        'tools/dist_train.sh',
        CONFIG,
        2,
        '--work-dir',
        tmp_path,
        *data,
        '--cfg-options',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1',
    )
    assert 'mIoU' in log and 'Iter(train)' in log
    log = tool(
        'test.py',
        CONFIG,
        tmp_path / 'iter_2.pth',
        '--work-dir',
        tmp_path / 'test',
        *data,
        '--out',
        tmp_path / 'labels',
        '--show-dir',
        tmp_path / 'pictures',
    )
    assert 'mIoU' in log
    maps = sorted((tmp_path / 'labels').glob('*.png'))
    assert [m.stem for m in maps] == [f'{i:06d}' for i in range(4)]
    labels = cv2.imread(str(maps[0]), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (96, 96)
    assert np.unique(labels).max() <= 11
    assert len(list((tmp_path / 'pictures').rglob('*.*g'))) == 4
    log = tool(
        'test.py',
        CONFIG,
        tmp_path / 'iter_2.pth',
        '--work-dir',
        tmp_path / 'tta',
        *data,
        '--tta',
    )
    assert 'mIoU' in log
