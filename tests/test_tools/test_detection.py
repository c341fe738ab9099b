# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Train, resume, evaluate: the main job, through the command line."""

import json
import pickle
import re

import pytest
import torch

from .conftest import ROOT, run, tool

CONFIG = 'configs/mask_rcnn_dat_digits.py'
QUICK = [
    '--cfg-options',
    'train_cfg.val_interval=1',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.checkpoint.max_keep_ckpts=3',
]


@pytest.fixture(scope='module')
def work(digits, tmp_path_factory):
    """A work dir with one epoch of training by two processes."""
    folder = tmp_path_factory.mktemp('work')
    log = run(
        'tools/dist_train.sh',
        CONFIG,
        2,
        '--work-dir',
        folder,
        '--data-root',
        f'{digits}/coco/',
        '--auto-scale-lr',
        *QUICK,
        'train_cfg.max_epochs=1',
    )
    (folder / 'log.txt').write_text(log)
    return folder


@pytest.mark.slow
def test_two_processes_train_without_a_gpu(work):
    log = (work / 'log.txt').read_text()
    assert 'Distributed training: True' in log and 'GPU number: 2' in log
    # 8 pictures, 4 per process.
    assert re.search(r'Epoch\(train\)\s+\[1\]\[1/1\]', log)
    assert 'coco/bbox_mAP_50' in log and 'coco/segm_mAP_50' in log
    assert (work / 'epoch_1.pth').is_file()


@pytest.mark.slow
def test_resumes_from_the_latest_checkpoint(work, digits):
    log = tool(
        'train.py',
        CONFIG,
        '--work-dir',
        work,
        '--resume',
        '--data-root',
        f'{digits}/coco/',
        *QUICK,
        'train_cfg.max_epochs=2',
    )
    assert 'resumed epoch: 1' in log
    # The same, from a file by name, and trained one more.
    log = tool(
        'train.py',
        CONFIG,
        '--work-dir',
        work,
        '--resume',
        work / 'epoch_2.pth',
        '--data-root',
        f'{digits}/coco/',
        *QUICK,
        'train_cfg.max_epochs=3',
    )
    assert 'resumed epoch: 2' in log
    saved = torch.load(work / 'epoch_3.pth', weights_only=False)
    assert saved['meta']['epoch'] == 3
    steps = {s['step'].item() for s in saved['optimizer']['state'].values()}
    assert len(steps) == 1


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(work, digits, tmp_path):
    metrics = {}
    for name, command in (
        ('one', ['python', 'tools/test.py', CONFIG, work / 'epoch_1.pth']),
        (
            'two',
            ['tools/dist_test.sh', CONFIG, work / 'epoch_1.pth', 2],
        ),
    ):
        if command[0] == 'python':
            command[0] = __import__('sys').executable
        run(
            *command,
            '--work-dir',
            tmp_path / name,
            '--data-root',
            f'{digits}/coco/',
            '--cfg-options',
            f'test_evaluator.outfile_prefix={tmp_path / name}',
        )
        found = next((tmp_path / name).glob('*/*.json'))
        metrics[name] = json.loads(found.read_text().splitlines()[-1])
    keys = [k for k in metrics['one'] if k.startswith('coco/')]
    assert keys
    assert {k: metrics['one'][k] for k in keys} == {
        k: metrics['two'][k] for k in keys
    }
    boxes = [
        sorted(
            (e['image_id'], e['category_id'], round(e['score'], 4))
            for e in json.loads((tmp_path / f'{n}.bbox.json').read_text())
        )
        for n in ('one', 'two')
    ]
    assert boxes[0] and boxes[0] == boxes[1]


@pytest.mark.slow
def test_test_draws_saves_and_augments(work, digits, tmp_path):
    out, pictures = tmp_path / 'predictions.pkl', tmp_path / 'pictures'
    tool(
        'test.py',
        CONFIG,
        work / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        '--data-root',
        f'{digits}/coco/',
        '--out',
        out,
        '--show-dir',
        pictures,
        '--tta',
    )
    predictions = pickle.loads(out.read_bytes())
    assert len(predictions) == 4
    assert {'bboxes', 'labels', 'scores'} <= set(
        predictions[0]['pred_instances']
    )
    assert len(list(pictures.rglob('*.*g'))) == 4


@pytest.mark.slow
def test_draws_predictions_beside_the_truth(work, digits, tmp_path):
    prefix = tmp_path / 'predictions'
    tool(
        'test.py',
        CONFIG,
        work / 'epoch_1.pth',
        '--work-dir',
        tmp_path,
        '--data-root',
        f'{digits}/coco/',
        '--cfg-options',
        f'test_evaluator.outfile_prefix={prefix}',
    )
    out = tool(
        'visualization/draw_detections.py',
        CONFIG,
        f'{prefix}.segm.json',
        tmp_path / 'sheet.png',
        '--count',
        3,
        '--data-root',
        f'{digits}/coco/',
        '--score',
        0,
    )
    from PIL import Image

    assert str(tmp_path / 'sheet.png') in out
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width > 1000 and len(sheet.convert('L').getcolors()) > 50


def test_the_demo_calls_what_the_tests_test():
    demo = (ROOT / 'tools' / 'demo.sh').read_text()
    for name in ('make_digits.py', 'dist_train.sh', 'dist_test.sh', CONFIG):
        assert name in demo
