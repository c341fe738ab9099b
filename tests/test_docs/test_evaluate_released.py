# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Every row of the recipe: its file, by its name, fits its config."""

import re
from pathlib import Path

import family
import golden_rule
import pytest
import released_heads
import torch
import yaml

from mmdat.checkpoints.fitting import Misfit, load_and_compare
from mmdat.engine.identify import identify

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'evaluate_released.md').read_text()
# | `file.pth` | `config.py` | number | perhaps another |
ROWS = {
    file: (config, [float(x) for x in re.findall(r'[\d.]+', numbers)])
    for file, config, numbers in re.findall(
        r'^\| `(\w+)\.pth` \| `(\w+)\.py` \|([^\n]*)\|$', PAGE, re.M
    )
}
HEADS = {
    'rtn': released_heads.retinanet,
    'mrcn': released_heads.mask_rcnn,
    'cmrcn': released_heads.cascade_mask_rcnn,
    'fpn': released_heads.semantic_fpn,
    'upn': released_heads.upernet,
}
METHODS = {
    'dat': 'classifier',
    'rtn': 'retinanet',
    'mrcn': 'mask_rcnn',
    'cmrcn': 'cascade_mask_rcnn',
    'fpn': 'semantic_fpn',
    'upn': 'upernet',
}
METRICS = {
    'Top 1 Accuracy': 0,
    'box AP': 0,
    'mask AP': 1,
    'mIoU': 0,
    'mIoU(ms+flip)': 1,
}


def contents(file):
    """What a file holds, by its name, as shapes."""
    method, *words = file.split('_')
    if method == 'dat':
        family = 'pp' if words[0] == 'pp' else 'v1'
        size = next(w for w in words if w in ('tiny', 'small', 'base'))
        large = '_384' if words[-1] == '384' else ''
        shapes = golden_rule.key_shapes(f'keys-{family}-dat_{size}{large}')
        wrapper = 'model'
    else:
        shapes, wrapper = HEADS[method](words[0]), 'state_dict'
    return {
        wrapper: {
            name: torch.empty(tuple(shape), device='meta')
            for name, shape in shapes.items()
        }
    }


def test_no_released_file_is_left_out():
    released = {
        name
        for name in family.PUBLISHED
        if '_dat_pp_' in name or name.startswith('classifier_')
    }
    assert released == {name for name, _ in ROWS.values()}
    assert len(ROWS) == len(released) == 26
    assert PAGE.count('.pth` |') == len(ROWS)


@pytest.mark.parametrize('file', ROWS)
def test_the_file_fits_the_config(file):
    name, _ = ROWS[file]
    model, checkpoint = family.skeleton(name), contents(file)
    assert load_and_compare(model, checkpoint) == Misfit()
    # Fitting, and of the same architecture and method.
    found, wanted = identify(checkpoint), identify(model.state_dict())
    assert str(found) == str(wanted)
    assert found.arch == family.load(name).model.backbone.arch


@pytest.mark.parametrize('file', ROWS)
def test_names_say_the_same(file):
    name, _ = ROWS[file]
    cfg = family.load(name)
    method, *words = file.split('_')
    assert name.startswith(METHODS[method])
    assert ('3x' in words) == ('_3x_' in name)
    for word in words:
        if word in ('1x', '3x'):
            assert cfg.train_cfg.max_epochs == 12 * int(word[0])
        elif re.fullmatch(r'\d+k', word):
            assert cfg.train_cfg.max_iters == 1000 * int(word[:-1])
        elif re.fullmatch(r'dp\d\d', word):
            rate = int(word[2:]) / 10
            assert cfg.model.backbone.drop_path_rate == rate
        elif word in ('224', '384'):
            crop = cfg.train_dataloader.dataset.pipeline[1]
            assert crop.scale == int(word)


def test_numbers_agree_with_the_metafiles():
    by_config = dict(ROWS.values())
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    compared = 0
    for metafile in index['Import']:
        models = yaml.safe_load((ROOT / metafile).read_text())['Models']
        for model in models:
            for result in model.get('Results', []):
                for metric, value in result['Metrics'].items():
                    if metric not in METRICS:
                        continue
                    ours = by_config.get(model['Name'])
                    if ours is not None:
                        digits = len(str(ours[METRICS[metric]]).split('.')[1])
                        assert round(value, digits) == ours[METRICS[metric]]
                        compared += 1
    assert compared


def test_what_the_page_names_is_there():
    for path in re.findall(r'(?:tools|tests|configs|docs)/[\w/]+\.\w+', PAGE):
        assert (ROOT / path).exists(), path
    roots = re.findall(r'`(data/[^`]+)`', PAGE)
    for name, root in zip(
        (
            'classifier_dat_t_in1k',
            'mask_rcnn_dat_pp_t_coco',
            'upernet_dat_pp_t_ade20k',
        ),
        roots,
        strict=True,
    ):
        dataset = family.load(name).test_dataloader.dataset
        assert dataset.data_root.rstrip('/') == root
    for name in re.findall(r'mmdat(?:\.\w+)+', PAGE):
        module, _, attribute = name.rpartition('.')
        assert hasattr(__import__(module, fromlist=['']), attribute)
