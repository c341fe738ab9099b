# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""One step of training and a test of each kind of model, on digits.

Recipes, heads and pipelines are those of the published configs, a size
smaller everywhere.
"""

import math

import family
import pytest
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner

from mmdat.datasets.digits import DigitsOptions, make_digits
from mmdat.engine.configuration import set_loader_defaults
from mmdat.engine.data_files import set_data_root
from mmdat.engine.tta import enable_tta

SHRINK = 8
DIMS = [32, 64, 96, 128]
ARCH = dict(
    embed_dims=DIMS, depths=[1, 2, 2, 2], num_heads=[1, 2, 3, 4], img_size=64
)
# What to write in place of a setting, wherever in the model it stands.
SMALLER = dict(
    fc_out_channels=32,
    max_per_img=20,  # proposals and detections
    num=16,  # sampled proposals
    channels=64,
    score_thr=0.0,
)
FOLDERS = dict(mmdet='coco/', mmseg='ade/', mmpretrain='imagenet/')


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    options = DigitsOptions(train=2, val=1, size=96, crops=1, crop_size=48)
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', options)


@pytest.fixture(autouse=True)
def plain_logs(monkeypatch):
    """To lay out a config for the log takes longer than the training."""
    monkeypatch.setattr(Config, 'pretty_text', property(lambda _: ''))


def visit(node):
    """All dicts inside a config."""
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from visit(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from visit(child)


def shrink(size):
    if isinstance(size, list | tuple):
        return type(size)(shrink(side) for side in size)
    return size // SHRINK


def small(name, digits, folder):
    """A published config, made to run here in seconds."""
    cfg = family.load(name)
    backbone = cfg.model.backbone
    kind = 'dat_pp' if '_dat_pp_' in name else 'dat'
    backbone.arch = dict(ARCH, family=kind)
    dims = [DIMS[i] for i in backbone.get('out_indices', range(4))]
    if cfg.default_scope == 'mmpretrain':
        cfg.model.head.in_channels = dims[-1]
    elif 'neck' in cfg.model:
        cfg.model.neck.in_channels = dims
    else:
        cfg.model.decode_head.in_channels = dims
        cfg.model.auxiliary_head.in_channels = dims[2]
    for part in visit(cfg.model):
        part.update({k: v for k, v in SMALLER.items() if k in part})
    if cfg.default_scope != 'mmseg':  # whose digits are 11 of the 150
        classes = dict(metainfo=dict(classes=tuple('0123456789')))
        for part in visit(cfg._cfg_dict):
            if 'num_classes' in part:
                part['num_classes'] = 10
            if 'pipeline' in part:
                part.update(classes)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = shrink((512, 512))
    for split in ('train', 'test'):
        loader = cfg[f'{split}_dataloader']
        pipelines = [loader.dataset.pipeline]
        if split == 'test' and 'tta_pipeline' in cfg:
            pipelines.append(cfg.tta_pipeline)
        for part in visit(pipelines):
            for key in ('scale', 'scales', 'crop_size'):
                if key in part:
                    part[key] = shrink(part[key])
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    set_data_root(cfg, f'{digits}/{FOLDERS[cfg.default_scope]}')
    set_loader_defaults(cfg)
    length = 'max_iters' if 'max_iters' in cfg.train_cfg else 'max_epochs'
    cfg.train_cfg[length] = 1
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None)
    for scheduler in cfg.param_scheduler:
        scheduler.update(begin=0, end=1, by_epoch=False)
        scheduler.pop('convert_to_iter_based', None)
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = str(folder)
    cfg.experiment_name = folder.name
    cfg.load_from = None
    return cfg


CASES = [
    ('retinanet_dat_t_coco', 'coco/bbox_mAP'),
    ('mask_rcnn_dat_pp_s_3x_coco', 'coco/segm_mAP'),
    ('cascade_mask_rcnn_dat_t_coco', 'coco/segm_mAP'),
    ('upernet_dat_pp_b_ade20k', 'mIoU'),
    ('semantic_fpn_dat_t_ade20k', 'mIoU'),
    ('classifier_dat_pp_b_384_in1k', 'accuracy/top1'),
]


@pytest.mark.parametrize(('name', 'metric'), CASES)
def test_trains_and_tests(name, metric, digits, tmp_path):
    runner = Runner.from_cfg(small(name, digits, tmp_path))
    runner.model = model = revert_sync_batchnorm(runner.model)
    reached, before = set(), {}
    for key, parameter in model.named_parameters():
        before[key] = parameter.detach().clone()
        parameter.register_hook(lambda _, key=key: reached.add(key))
    runner.train()
    # DDP fails in a step that gives a parameter no gradient.
    assert reached == before.keys()
    moved = {
        key
        for key, parameter in model.named_parameters()
        if not parameter.equal(before[key])
    }
    assert any(key.startswith('backbone.patch_embed') for key in moved)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    found = runner.test()
    assert metric in found and not math.isnan(found[metric])


def test_segmentors_test_at_many_scales(digits, tmp_path):
    cfg = small('semantic_fpn_dat_pp_t_ade20k', digits, tmp_path)
    enable_tta(cfg)
    runner = Runner.from_cfg(cfg)
    runner.model = revert_sync_batchnorm(runner.model)
    sizes = []
    runner.model.module.backbone.register_forward_hook(
        lambda _, images, __: sizes.append(images[0].shape[2])
    )
    assert 'mIoU' in runner.test()
    assert sizes == [32, 32, 48, 48, 64, 64, 80, 80, 96, 96, 112, 112]
