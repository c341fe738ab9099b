# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Every config is there, parses and builds; metafiles agree with configs."""

import family
import pytest
import torch
import yaml
from mmengine.model import revert_sync_batchnorm

from mmdat.models import DAT
from mmdat.models.arch import ARCH_ZOO

FAMILIES = ('dat', 'dat_pp')
SCHEDULES = {
    'retinanet': ['t', 't_3x', 's', 's_3x'],
    'mask_rcnn': ['t', 't_3x', 's', 's_3x'],
    'cascade_mask_rcnn': ['t', 't_3x', 's_3x', 'b_3x'],
}
COLLECTIONS = {'dat': 'DAT', 'dat_pp': 'DAT++'}


def test_every_model_of_the_papers_has_a_config():
    wanted = set()
    for name in FAMILIES:
        for method, sizes in SCHEDULES.items():
            wanted |= {f'{method}_{name}_{size}_coco' for size in sizes}
        for method in ('upernet', 'semantic_fpn'):
            wanted |= {f'{method}_{name}_{size}_ade20k' for size in 'tsb'}
        wanted |= {
            f'classifier_{name}_{size}_in1k'
            for size in ('t', 's', 'b', 'b_384')
        }
    assert set(family.PUBLISHED) == wanted


@pytest.mark.parametrize('name', family.NAMES)
def test_leaves_are_lean(name):
    path = family.ROOT / 'configs' / f'{name}.py'
    assert len(path.read_text().splitlines()) <= 15


@pytest.mark.parametrize('name', family.NAMES)
def test_builds_with_a_dat(name):
    assert isinstance(family.skeleton(name).backbone, DAT)


@pytest.mark.parametrize('name', family.PUBLISHED)
def test_the_name_says_which_backbone(name):
    backbone = family.load(name).model.backbone
    stem = name.removesuffix('_in1k').removesuffix('_ade20k')
    stem = stem.removesuffix('_coco').removesuffix('_3x')
    assert stem.endswith(f'_{backbone.arch}')


def shrunken(name):
    """The model of a config with the widths it has and few blocks."""
    cfg = family.load(name)
    arch = ARCH_ZOO[cfg.model.backbone.arch]
    cfg.model.backbone.arch = dict(arch, depths=[1, 1, 2, 1])
    return cfg.default_scope, revert_sync_batchnorm(family.build(cfg)).eval()


@pytest.mark.parametrize('name', family.PUBLISHED)
def test_necks_and_heads_take_what_the_backbone_gives(name):
    scope, model = shrunken(name)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        if scope == 'mmpretrain':
            assert model(images).shape == (1, 1000)
            return
        levels = model.extract_feat(images)
        if scope == 'mmseg':
            assert [x.shape[2:] for x in levels] == [
                (16, 24),
                (8, 12),
                (4, 6),
                (2, 3),
            ]
            assert model(images).shape == (1, 150, 16, 24)
            return
        first = 8 if name.startswith('retinanet') else 4
        strides = [first * 2**i for i in range(5)]
        assert [tuple(x.shape[1:]) for x in levels] == [
            (256, -(-64 // stride), -(-96 // stride)) for stride in strides
        ]
        head = model.bbox_head if first == 8 else model.rpn_head
        priors = head.prior_generator
        assert [stride[0] for stride in priors.strides] == strides
        outs = head(levels)
        assert all(len(out) == 5 for out in outs)


def entries():
    """What the metafiles that model-index.yml lists say of each model."""
    index = yaml.safe_load((family.ROOT / 'model-index.yml').read_text())
    files = [
        yaml.safe_load((family.ROOT / name).read_text())
        for name in index['Import']
    ]
    return files, [entry for file in files for entry in file['Models']]


def test_metafiles_list_every_config_once():
    _, models = entries()
    names = [entry['Name'] for entry in models]
    assert sorted(names) == sorted(family.PUBLISHED)


def test_metafiles_describe_both_collections():
    files, _ = entries()
    collections = [c for file in files for c in file.get('Collections', [])]
    assert [c['Name'] for c in collections] == list(COLLECTIONS.values())
    for collection in collections:
        assert collection['Paper']['URL'].startswith('https://arxiv.org/abs/')
        assert (family.ROOT / collection['README']).is_file()


@pytest.mark.parametrize('entry', entries()[1], ids=lambda e: e['Name'])
def test_metafiles_agree_with_the_configs(entry):
    name = entry['Name']
    assert entry['Config'] == f'configs/{name}.py'
    kind = 'dat_pp' if '_dat_pp_' in name else 'dat'
    assert entry['In Collection'] == COLLECTIONS[kind]
    cfg = family.load(name)
    wanted = {
        'Batch Size': cfg.auto_scale_lr.base_batch_size,
        'Parameters': sum(
            p.numel() for p in family.skeleton(name).parameters()
        ),
    }
    if 'max_iters' in cfg.train_cfg:
        wanted['Iterations'] = cfg.train_cfg.max_iters
    else:
        wanted['Epochs'] = cfg.train_cfg.max_epochs
    metadata = dict(entry['Metadata'])
    # Compared with the page on complexity by the tests of pages.
    assert metadata.pop('FLOPs') > 0
    method, _, rest = name.partition('_dat_')
    size = rest.removeprefix('pp_')[0].upper()
    model = f'DAT-{size}' + '++' * rest.startswith('pp_')
    names = metadata.pop('Architecture')
    assert names[0] == model
    assert [
        n.lower().replace(' ', '_').replace('-', '') for n in names[1:]
    ] == ([method] if method != 'classifier' else [])
    assert metadata == wanted


# Box and mask AP, single- and multi-scale mIoU, top-1 and top-5 accuracy.
REPORTED = {
    'retinanet_dat_s_3x_coco': [47.9],
    'retinanet_dat_pp_t_coco': [46.8],
    'retinanet_dat_pp_t_3x_coco': [49.2],
    'retinanet_dat_pp_s_coco': [48.3],
    'retinanet_dat_pp_s_3x_coco': [50.2],
    # DAT (2022), Mask R-CNN 1x and Semantic FPN: README of
    # https://github.com/QingbeiGuo/HybridFormer
    'mask_rcnn_dat_t_coco': [44.4, 40.4],
    'mask_rcnn_dat_s_coco': [47.1, 42.5],
    'semantic_fpn_dat_t_ade20k': [42.6],
    'semantic_fpn_dat_s_ade20k': [46.1],
    'semantic_fpn_dat_b_ade20k': [47.0],
    'mask_rcnn_dat_pp_t_coco': [48.7, 43.7],
    'mask_rcnn_dat_pp_t_3x_coco': [50.5, 45.1],
    'mask_rcnn_dat_pp_s_coco': [49.8, 44.5],
    'mask_rcnn_dat_pp_s_3x_coco': [51.2, 45.7],
    'cascade_mask_rcnn_dat_pp_t_coco': [52.2, 45.0],
    'cascade_mask_rcnn_dat_pp_t_3x_coco': [53.0, 46.0],
    'cascade_mask_rcnn_dat_pp_s_3x_coco': [54.2, 46.9],
    'cascade_mask_rcnn_dat_pp_b_3x_coco': [54.5, 47.0],
    'semantic_fpn_dat_pp_t_ade20k': [48.4, 48.8],
    'semantic_fpn_dat_pp_s_ade20k': [49.9, 50.7],
    'semantic_fpn_dat_pp_b_ade20k': [50.4, 51.1],
    'upernet_dat_t_ade20k': [45.54],
    'upernet_dat_s_ade20k': [48.31],
    'upernet_dat_b_ade20k': [49.38],
    'upernet_dat_pp_t_ade20k': [49.4, 50.3],
    'upernet_dat_pp_s_ade20k': [50.5, 51.2],
    'upernet_dat_pp_b_ade20k': [51.0, 51.5],
    'classifier_dat_t_in1k': [82.034, 95.850],
    'classifier_dat_s_in1k': [83.686, 96.392],
    'classifier_dat_b_in1k': [84.028, 96.686],
    'classifier_dat_b_384_in1k': [84.754, 96.982],
    'classifier_dat_pp_t_in1k': [83.864, 96.734],
    'classifier_dat_pp_s_in1k': [84.6],
    'classifier_dat_pp_b_in1k': [84.9],
    'classifier_dat_pp_b_384_in1k': [85.9],
}
METRICS = {
    'Object Detection': ('COCO', ['box AP']),
    'Instance Segmentation': ('COCO', ['mask AP']),
    'Semantic Segmentation': ('ADE20K', ['mIoU', 'mIoU(ms+flip)']),
    'Image Classification': (
        'ImageNet-1k',
        ['Top 1 Accuracy', 'Top 5 Accuracy'],
    ),
}


def test_metafiles_quote_what_the_authors_report():
    """And nothing for the models that no public page has figures of."""
    quoted = {}
    for entry in entries()[1]:
        for result in entry.get('Results', []):
            dataset, metrics = METRICS[result['Task']]
            assert result['Dataset'] == dataset
            assert list(result['Metrics']) == metrics[: len(result['Metrics'])]
            quoted.setdefault(entry['Name'], []).extend(
                result['Metrics'].values()
            )
    assert quoted == REPORTED
