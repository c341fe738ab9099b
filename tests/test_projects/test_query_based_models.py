# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""DINO, Mask2Former, RTMDet: configs build, and the small ones train."""

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn

mmdet = pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

import family  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.utils import digit_version  # noqa: E402

from mmdat.analysis.forward import build_model  # noqa: E402
from mmdat.datasets.digits import DigitsOptions, make_digits  # noqa: E402
from mmdat.engine.configuration import load_config  # noqa: E402
from mmdat.engine.data_files import set_data_root  # noqa: E402
from mmdat.engine.inference import look  # noqa: E402
from mmdat.models.arch import resolve_arch  # noqa: E402

PROJECTS = Path(__file__).parents[2] / 'projects'
LEAVES = {
    path.stem: path
    for name in ('dino_dat', 'mask2former_dat')
    for path in sorted((PROJECTS / name / 'configs').glob('*.py'))
}
DIGITS = [name for name in LEAVES if '_digits' in name]
RUNNABLE = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == 'dino_dat_digits'
            and digit_version(mmdet.__version__) < digit_version('3.4'),
            reason='the official DINO has 256 channels whatever is set',
        ),
    )
    for name in DIGITS
]
TABLES = ('relative_position_bias_table', 'rpe_table', 'rpb')
SIZES = [f'dat_{s}' for s in 'tsb'] + [f'dat_pp_{s}' for s in 'tsb']


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    options = DigitsOptions(train=4, val=1, size=96, crops=1, crop_size=48)
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', options)


@pytest.fixture(autouse=True)
def quiet():
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


def test_all_are_there_and_lean():
    wanted = {f'dino_{size}_coco' for size in SIZES}
    for task in ('coco_instance', 'coco_panoptic', 'ade20k'):
        wanted |= {f'mask2former_{size}_{task}' for size in SIZES}
    assert {*LEAVES} - {*DIGITS} == wanted
    for path in LEAVES.values():
        assert len(path.read_text().splitlines()) <= 15


@pytest.mark.parametrize('name', [n for n in LEAVES if n not in DIGITS])
def test_the_backbone_fits_the_rest(name):
    cfg = load_config(str(LEAVES[name]))
    backbone = cfg.model.backbone
    assert name.startswith(
        (f'dino_{backbone.arch}_', f'mask2former_{backbone.arch}_')
    )
    assert 0 < backbone.drop_path_rate < 0.5
    stages = resolve_arch(backbone.arch, {}).stages
    dims = [stages[i].dim for i in backbone.get('out_indices', range(4))]
    part = next(
        cfg.model[key]
        for key in ('neck', 'panoptic_head', 'decode_head')
        if key in cfg.model
    )
    assert list(part.in_channels) == dims


@pytest.mark.parametrize(
    'name',
    [
        'dino_dat_s_coco',
        'mask2former_dat_t_coco_instance',
        'mask2former_dat_pp_t_coco_panoptic',
        'mask2former_dat_pp_t_ade20k',
    ],
)
def test_what_learns_how_fast_and_what_decays(name):
    cfg = load_config(str(LEAVES[name]))
    with torch.device('meta'):
        model = family.build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    full, decay = cfg.optim_wrapper.optimizer.lr, 0
    names = {id(p): n for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        (parameter,) = group['params']
        key = names[id(parameter)]
        depth, layers = model.backbone.get_layer_depth(key, 'backbone.')
        assert group['lr'] == pytest.approx(full * 0.9 ** (layers - 1 - depth))
        owner = model.get_submodule(key.rpartition('.')[0])
        kind = type(owner)
        if kind in (nn.LayerNorm, nn.GroupNorm) or key.endswith(TABLES):
            assert group['weight_decay'] == 0, key
        elif isinstance(owner, nn.Linear | nn.Conv2d):
            assert group['weight_decay'] > 0, key
            decay += 1
    assert decay > 50


@pytest.mark.parametrize('name', RUNNABLE)
def test_trains_and_tests(name, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))
    cfg = load_config(str(LEAVES[name]))
    seg = cfg.default_scope == 'mmseg'
    set_data_root(cfg, f'{digits}/{"ade" if seg else "coco"}/')
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg[length] = 1
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.indices = 2
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = None
    cfg.work_dir, cfg.experiment_name = str(tmp_path), tmp_path.name
    runner = Runner.from_cfg(cfg)
    runner.model = model = revert_sync_batchnorm(runner.model)
    reached = set()
    for key, parameter in model.named_parameters():
        parameter.register_hook(lambda _, key=key: reached.add(key))
    runner.train()
    # DDP fails in a step that gives a parameter no gradient.
    assert reached == {key for key, _ in model.named_parameters()}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    metric = 'mIoU' if seg else 'coco/bbox_mAP'
    assert not math.isnan(runner.test()[metric])


@pytest.mark.parametrize('name', RUNNABLE)
def test_pictures(name, digits, tmp_path):
    """As in demo/image_demo.py, which builds the model twice."""
    cfg = load_config(str(LEAVES[name]))
    model, file = build_model(cfg), tmp_path / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict()), file)
    picture = next((digits / 'coco' / 'val2017').iterdir())
    sight = look(cfg, str(file), str(picture), score=0.0)
    assert sight.drawing.std() > 0 and sight.lines


def test_panoptic_loss():
    from mmdet.testing import demo_mm_inputs

    cfg = load_config(str(LEAVES['mask2former_dat_pp_t_coco_panoptic']))
    small = load_config(str(LEAVES['mask2former_dat_digits']))
    model = cfg.model
    model.backbone.arch = small.model.backbone.arch
    head, own = model.panoptic_head, small.model.panoptic_head
    for key in (
        *('in_channels', 'feat_channels', 'out_channels'),
        *('positional_encoding', 'pixel_decoder', 'transformer_decoder'),
    ):
        head[key] = own[key]
    head.num_queries = 10
    model.train_cfg.num_points = 100
    model.data_preprocessor.batch_augments[0].size = (96, 96)
    built = family.build(cfg).train()
    data = demo_mm_inputs(
        2,
        image_shapes=[(3, 96, 96), (3, 80, 64)],
        num_classes=80,
        num_items=[2, 1],
        with_mask=True,
        with_semantic=True,
    )
    losses = built(**built.data_preprocessor(data, True), mode='loss')
    total = sum(v for v in losses.values() if torch.is_tensor(v))
    assert total.isfinite() and total > 0
    total.backward()


def test_rtmdet_reaches_every_parameter():
    from mmdet.testing import demo_mm_inputs

    folder = PROJECTS / 'rtmdet_dat' / 'configs'
    cfg = load_config(str(folder / 'rtmdet_dat_pp_b_coco.py'))
    dims = [32, 64, 128, 192]  # which the neck's group norms can halve
    cfg.model.backbone.arch = dict(
        embed_dims=dims, depths=1, num_heads=[1, 2, 4, 6], img_size=64
    )
    cfg.model.neck.in_channels = dims[1:]
    model = revert_sync_batchnorm(family.build(cfg)).train()
    data = demo_mm_inputs(
        2, image_shapes=[(3, 96, 96)] * 2, num_classes=80, num_items=[2, 1]
    )
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    sum(sum(parts) for parts in losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
