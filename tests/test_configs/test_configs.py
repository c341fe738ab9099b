# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Every config parses and builds; the recipes are the authors'."""

from pathlib import Path

import golden_rule
import pytest
import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmdat.checkpoints.released import rename
from mmdat.engine.configuration import load_config
from mmdat.models import DAT

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
COCO = {'dat_t': 'mask_rcnn_dat_t_coco', 'dat_pp_t': 'mask_rcnn_dat_pp_t_coco'}


def build(path):
    cfg = load_config(str(path))
    init_default_scope(cfg.default_scope)
    return cfg, MODELS.build(cfg.model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_builds_with_a_dat(path):
    cfg, model = build(path)
    assert isinstance(model.backbone, DAT)
    init_default_scope(cfg.default_scope)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimised = {
        parameter
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert optimised == set(model.parameters())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_leaves_are_lean(path):
    assert len(path.read_text().splitlines()) <= 15


@pytest.mark.parametrize(('arch', 'name'), COCO.items())
def test_mask_rcnn_recipe(arch, name):
    cfg = load_config(str(ROOT / 'configs' / f'{name}.py'))
    assert cfg.model.type == 'MaskRCNN'
    assert cfg.model.backbone.arch == arch
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('AdamW', 1e-4)
    assert (optimizer.weight_decay, optimizer.betas) == (0.05, (0.9, 0.999))
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.train_dataloader.batch_size == 2  # on 8 GPUs
    assert cfg.train_cfg.max_epochs == 12
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (0.001, 500)
    assert steps.milestones == [8, 11] and steps.gamma == 0.1
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    resize = cfg.test_dataloader.dataset.pipeline[1]
    assert resize.scale == (1333, 800) and resize.keep_ratio


@pytest.mark.parametrize(('arch', 'name'), COCO.items())
def test_necks_hold_the_released_convolutions(arch, name):
    """The released files have five 3x3 convolutions in the neck."""
    _, model = build(ROOT / 'configs' / f'{name}.py')
    assert len(model.neck.fpn_convs) == 5
    levels = model.extract_feat(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in levels] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
        (1, 2),
    ]


@pytest.mark.parametrize('kind', ['v1det', 'det'])
def test_the_authors_groups_of_parameters(kind):
    """Weight decay, name by name, by their rule on their names."""
    arch = 'dat_t' if kind == 'v1det' else 'dat_pp_t'
    cfg, model = build(ROOT / 'configs' / f'{COCO[arch]}.py')
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decays = {
        parameter: group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    ours = dict(model.backbone.named_parameters())
    free = (
        'absolute_pos_embed',
        'relative_position_bias_table',
        'rpe_table',
        'norm',
    )
    theirs = golden_rule.key_shapes(f'keys-{kind}-dat_tiny')
    assert len(theirs) == len(ours)
    found = {key: decays[ours[rename(key)]] for key in theirs}
    assert found == {
        key: 0.0 if any(word in key for word in free) else 0.05
        for key in theirs
    }


def test_metafile_agrees_with_the_configs():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    entries = [
        entry
        for name in index['Import']
        for entry in yaml.safe_load((ROOT / name).read_text())['Models']
    ]
    assert {entry['Name'] for entry in entries} == {
        path.stem for path in CONFIGS if not path.stem.endswith('_digits')
    }
    for entry in entries:
        assert entry['Config'] == f'configs/{entry["Name"]}.py'
        cfg, model = build(ROOT / entry['Config'])
        metadata = entry['Metadata']
        assert metadata['Epochs'] == cfg.train_cfg.max_epochs
        assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
        assert metadata['Parameters'] == sum(
            p.numel() for p in model.parameters()
        )
