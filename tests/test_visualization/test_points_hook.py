# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The hook in real, short trainings of all three tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend
from test_tools.conftest import run

from mmdat.engine.configuration import load_config, set_loader_defaults
from mmdat.engine.data_files import set_data_root
from mmdat.visualization.points_hook import PointsHook

for package in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(package)
ROOT = Path(__file__).parents[2]
SMALL = dict(
    embed_dims=[32, 64, 96, 128],
    depths=[1, 1, 1, 1],
    num_heads=[1, 2, 3, 4],
    attentions=['N', 'D', 'D', 'D'],
    img_size=48,
)
TASKS = dict(
    det=('mask_rcnn_dat_digits.py', 'coco/'),
    seg=('upernet_dat_digits.py', 'ade/'),
    cls=('classifier_dat_digits.py', 'imagenet/'),
)


@VISBACKENDS.register_module()
class Witness(BaseVisBackend):
    """Another backend beside the local one, as TensorBoard would be."""

    def __init__(self, save_dir=None):
        super().__init__(save_dir)
        self.images, self.scalars = [], {}

    def _init_env(self):
        pass

    @property
    def experiment(self):
        return self

    def add_image(self, name, image, step=0, **_):
        self.images.append((name, step, image.shape))

    def add_scalars(self, scalar_dict, step=0, file_path=None, **_):
        self.scalars.setdefault(step, {}).update(scalar_dict)


def train(task, digits, work_dir, hook, **changes):
    """Three iterations of a tiny model; returns the runner."""
    name, data = TASKS[task]
    cfg = load_config(str(ROOT / 'configs' / name))
    set_data_root(cfg, f'{digits}/{data}')
    cfg.model.backbone.arch = SMALL
    cfg.train_cfg = dict(by_epoch=False, max_iters=3, val_interval=100)
    cfg.param_scheduler = []
    cfg.work_dir = str(work_dir)
    cfg.custom_hooks = [] if hook is None else [hook]
    cfg.visualizer.vis_backends = [
        dict(type='LocalVisBackend'),
        dict(type='Witness'),
    ]
    cfg.visualizer.name = str(work_dir)
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.merge_from_dict(changes)
    set_loader_defaults(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_draws_and_counts_for_every_backend(task, digits, tmp_path):
    hook = dict(type='mmdat.PointsHook', interval=2)
    runner = train(task, digits, tmp_path, hook)
    (witness,) = (
        backend
        for backend in runner.visualizer._vis_backends.values()
        if isinstance(backend, Witness)
    )
    # Before the first and the third iteration, and in the end.
    assert [(n, s) for n, s, _ in witness.images] == [
        ('points_0', 0),
        ('points_0', 2),
        ('points_0', 3),
    ]
    files = sorted(p.name for p in tmp_path.rglob('vis_image/*.png'))
    assert files == [f'points_0_{step}.png' for step in (0, 2, 3)]
    image = cv2.imread(str(next(tmp_path.rglob('points_0_3.png'))))
    assert image.shape == witness.images[-1][2] and image.std() > 20
    numbers = witness.scalars[2]
    assert {key for key in numbers if key.startswith('points/')} == {
        f'points/stage{stage}_{what}'
        for stage in (1, 2, 3)
        for what in ('displacement', 'outside', 'clamped')
    }
    assert numbers['points/stage3_displacement'] > 0
    assert 0 <= numbers['points/stage3_outside'] <= 1
    lines = next(tmp_path.rglob('scalars.json')).read_text().splitlines()
    steps = [
        entry['step']
        for entry in map(json.loads, lines)
        if 'points/stage3_displacement' in entry
    ]
    assert steps == [0, 2, 3]


@pytest.mark.slow
def test_training_is_not_changed(digits, tmp_path):
    hook = dict(type='mmdat.PointsHook', interval=1)
    drop = {'model.backbone.drop_path_rate': 0.5}
    looked = train('cls', digits, tmp_path / 'a', hook, **drop)
    not_looked = train('cls', digits, tmp_path / 'b', None, **drop)
    other = not_looked.model.state_dict()
    for name, value in looked.model.state_dict().items():
        assert torch.equal(value, other[name]), name
    # Also where a part of the model is in another mode than the rest.
    model = looked.model.train()
    model.backbone.stages[1].eval()
    modes = [module.training for module in model.modules()]
    PointsHook(interval=3).before_train_iter(looked, 0)
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.slow
def test_training_data_and_files(digits, tmp_path):
    no_val = dict(val_dataloader=None, val_cfg=None, val_evaluator=None)
    hook = dict(
        type='mmdat.PointsHook', interval=3, num_images=2, received=False
    )
    train('seg', digits, tmp_path / 'a', hook, **no_val)
    files = sorted(p.name for p in tmp_path.rglob('vis_image/*.png'))
    assert files == [
        f'points_{i}_{step}.png' for i in (0, 1) for step in (0, 3)
    ]
    image = next((digits / 'ade').rglob('*.jpg'))
    hook = dict(type='mmdat.PointsHook', images=str(image), group=0)
    train('cls', digits, tmp_path / 'b', hook)
    files = sorted(p.name for p in (tmp_path / 'b').rglob('vis_image/*.png'))
    assert files == ['points_0_0.png', 'points_0_3.png']


@pytest.mark.slow
def test_one_of_two_processes_draws(digits, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(ROOT / "configs/classifier_dat_digits.py")!r}\n'
        "custom_hooks = [dict(type='mmdat.PointsHook', interval=1)]\n"
        f'model = dict(backbone=dict(arch={SMALL}))\n'
        'train_cfg = dict(max_epochs=1)\n'
    )
    log = run(
        'tools/dist_train.sh',
        config,
        2,
        '--work-dir',
        tmp_path / 'work',
        '--data-root',
        f'{digits}/imagenet/',
    )
    assert 'GPU number: 2' in log
    files = sorted(p.name for p in tmp_path.rglob('vis_image/*.png'))
    assert files == ['points_0_0.png', 'points_0_1.png']


def test_found_by_its_prefix_from_any_scope():
    code = (
        'import sys\n'
        'from mmengine.registry import HOOKS, init_default_scope\n'
        "init_default_scope('mmdet')\n"
        "hook = HOOKS.build(dict(type='mmdat.PointsHook', interval=7))\n"
        'print(type(hook).__module__, hook.interval)'
    )
    out = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert 'mmdat.visualization.points_hook 7' in out.stdout, out.stderr


@pytest.mark.parametrize('name', ['interval', 'num_images'])
def test_arguments_are_checked(name):
    with pytest.raises(ValueError, match=f'{name} .* positive .* got 0'):
        PointsHook(**{name: 0})
