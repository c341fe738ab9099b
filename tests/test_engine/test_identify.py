# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A file is told by the names and shapes of its entries."""

import json
from pathlib import Path

import pytest
import released
import torch

from mmdat import DAT
from mmdat.engine.identify import identify

KEYS = Path(__file__).parents[1] / 'data' / 'golden'


def entries(keys, prefix=''):
    """A file's names and shapes as tensors without memory."""
    shapes = json.loads((KEYS / f'keys-{keys}.json').read_text())
    return {
        prefix + name: torch.empty(shape, device='meta')
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ('keys', 'phrase', 'parameters'),
    [
        ('v1-dat_tiny', 'DAT-T for classification at 224', 28_319_138),
        ('v1-dat_small', 'DAT-S for classification at 224', None),
        ('v1-dat_base', 'DAT-B for classification at 224', 87_881_632),
        ('v1-dat_base_384', 'DAT-B for classification at 384', 88_178_272),
        ('pp-dat_tiny', 'DAT-T++ for classification at 224', 23_962_876),
        ('pp-dat_small', 'DAT-S++ for classification at 224', 53_127_366),
        ('pp-dat_base', 'DAT-B++ for classification at 224', None),
        ('pp-dat_base_384', 'DAT-B++ for classification at 384', 94_119_440),
        ('v1det-dat_tiny', 'DAT-T, a backbone alone at 224', 27_551_482),
        ('p-dat_tiny', 'DAT-T+ for classification at 224', 22_772_796),
        ('det-dat_tiny', 'DAT-T++, a backbone alone at 224', 23_450_772),
        ('det-dat_base', 'DAT-B++, a backbone alone at 224', 92_667_432),
    ],
)
@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
def test_published_files(keys, phrase, parameters, wrapper):
    file = entries(keys)
    found = identify({wrapper: file, 'epoch': 3} if wrapper else file)
    assert str(found) == phrase
    assert found.arch == released.arch_of(f'keys-{keys}')
    if parameters is not None:
        assert found.parameters == parameters


HEADS = {
    'detection with RetinaNet': ['neck.x', 'bbox_head.retina_cls.weight'],
    'detection with Mask R-CNN': [
        'rpn_head.rpn_conv.weight',
        'roi_head.bbox_head.fc_cls.weight',
        'roi_head.mask_head.conv_logits.weight',
    ],
    'detection with Cascade Mask R-CNN': [
        'rpn_head.rpn_conv.weight',
        'roi_head.bbox_head.0.fc_cls.weight',
        'roi_head.mask_head.0.conv_logits.weight',
    ],
    'segmentation with UPerNet': [
        'decode_head.psp_modules.0.1.conv.weight',
        'auxiliary_head.conv_seg.weight',
    ],
    'segmentation with Semantic FPN': [
        'neck.x',
        'decode_head.scale_heads.0.0.conv.weight',
    ],
    'segmentation': ['decode_head.conv_seg.weight'],
    'detection': ['bbox_head.gfl_cls.weight'],
}


@pytest.mark.parametrize('task', HEADS)
def test_tasks_are_told_by_their_heads(task):
    file = entries('det-dat_tiny', 'backbone.')
    file.update((name, torch.zeros(3, 4)) for name in HEADS[task])
    found = identify({'state_dict': file})
    assert str(found) == f'DAT-T++ for {task}'
    assert found.parameters == 23_450_772 + 12 * len(HEADS[task])


def test_index_tables_and_statistics_are_no_parameters():
    file = entries('v1-dat_tiny')
    file['stages.0.attns.0.relative_position_index'] = torch.zeros(49, 49)
    file['neck.bn.running_mean'] = torch.zeros(7)
    assert identify(file).parameters == 28_319_138


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_our_own_names(prefix):
    with torch.device('meta'):
        own = DAT('dat_pp_b_384').state_dict()
    found = identify({prefix + name: value for name, value in own.items()})
    assert str(found) == 'DAT-B++, a backbone alone at 384'
    assert found.arch == 'dat_pp_b_384'


def test_an_architecture_of_ones_own():
    arch = dict(
        embed_dims=[32, 64, 96, 128], depths=[1, 2, 2, 2], num_heads=[1] * 4
    )
    with torch.device('meta'):
        found = identify(DAT(arch).state_dict())
    assert (found.family, found.variant, found.arch) == ('DAT++', None, None)
    assert '32-64-96-128 channels and 1-2-2-2 blocks' in str(found)


def test_heads_count_too():
    """The widths of DAT-T with other heads are not DAT-T."""
    arch = dict(family='dat', embed_dims=[96, 192, 384, 768])
    arch.update(depths=[2, 2, 6, 2], num_heads=[6, 6, 12, 24])
    with torch.device('meta'):
        assert identify(DAT(arch).state_dict()).variant is None


@pytest.mark.parametrize(
    'file', [{}, {'conv1.weight': torch.zeros(2)}, {'meta': {}, 'epoch': 1}]
)
def test_something_else(file):
    found = identify(file)
    assert found.family is None and str(found) == 'neither DAT nor DAT++'
