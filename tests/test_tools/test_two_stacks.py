# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checkpoints of the official packages and of the forks load in the other.

Needs both: ``.venv`` of ``make setup`` and the environment ``official`` of
``make test-compat``.
"""

import json
import os
from pathlib import Path

import pytest

from .conftest import ROOT, run

HOME = Path(os.environ.get('MMDAT_COMPAT_HOME', ROOT / '.venv-compat'))
PYTHONS = {
    'forks': ROOT / '.venv' / 'bin' / 'python',
    'official': HOME / 'official' / 'bin' / 'python',
}
CONFIGS = {
    'coco': 'configs/mask_rcnn_dat_digits.py',
    'ade': 'configs/upernet_dat_digits.py',
    'imagenet': 'configs/classifier_dat_digits.py',
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(python.exists() for python in PYTHONS.values()),
        reason='needs .venv and .venv-compat/official',
    ),
]


def length(data, count):
    """Settings for a training of so many epochs or iterations."""
    if data == 'ade':
        return [f'train_cfg.max_iters={count}', 'train_cfg.val_interval=9']
    return [f'train_cfg.max_epochs={count}', 'train_cfg.val_interval=9']


@pytest.mark.parametrize('writer', PYTHONS)
@pytest.mark.parametrize('data', CONFIGS)
def test_a_checkpoint_of_one_stack_is_one_of_the_other(
    data, writer, digits, tmp_path
):
    """It is evaluated to the same numbers, and training goes on from it."""
    reader = next(name for name in PYTHONS if name != writer)

    def call(stack, tool, *arguments):
        common = ['--data-root', f'{digits}/{data}/']
        return run(
            *(PYTHONS[stack], f'tools/{tool}.py', CONFIGS[data]),
            *(*arguments, *common),
        )

    work = tmp_path / 'work'
    settings = ['--work-dir', work, '--cfg-options']
    settings += [
        'default_hooks.checkpoint.interval=1',
        'default_hooks.logger.interval=1',
    ]
    call(writer, 'train', *settings, *length(data, 1))
    unit = 'iter' if data == 'ade' else 'epoch'
    assert (work / f'{unit}_1.pth').is_file()
    scores = []
    for stack in PYTHONS:
        folder = tmp_path / stack
        call(stack, 'test', work / f'{unit}_1.pth', '--work-dir', folder)
        log = next(folder.glob('*/*.json'))
        found = json.loads(log.read_text().splitlines()[-1])
        scores.append({k: v for k, v in found.items() if 'time' not in k})
    assert scores[0] and scores[0] == pytest.approx(scores[1], abs=1e-3)
    said = call(reader, 'train', '--resume', *settings, *length(data, 2))
    assert f'resumed epoch: {int(unit == "epoch")}' in said
    assert (work / f'{unit}_2.pth').is_file()
