# Copyright (c) mmdat contributors. Apache-2.0 licence.
import golden_rule
import pytest
import torch
from torch import nn

from mmdat.checkpoints.fitting import Misfit, load_and_compare
from mmdat.engine.weights import (
    check_fits,
    classes_note,
    resolution_note,
)
from mmdat.models import DAT
from mmdat.utils.errors import UserError


def entries(keys, prefix=''):
    """A released state dict of shapes only."""
    return {
        prefix + key: torch.empty(shape, device='meta')
        for key, shape in golden_rule.key_shapes(f'keys-{keys}').items()
    }


def backbone(arch):
    with torch.device('meta'):
        return DAT(arch)


class Detector(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone = backbone(arch)
        self.bbox_head = nn.Module()
        self.bbox_head.retina_cls = nn.Conv2d(4, 4, 1, device='meta')


@pytest.mark.parametrize(
    ('keys', 'arch'),
    [
        ('v1-dat_tiny', 'dat_t'),
        ('v1-dat_base_384', 'dat_b_384'),
        ('v1-dat_base', 'dat_b_384'),  # tables resized
        ('pp-dat_small', 'dat_pp_s'),
        ('det-dat_base', 'dat_pp_b'),
    ],
)
@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
def test_released_files_fit_their_variant(keys, arch, wrapper):
    file = entries(keys)
    file = file if wrapper is None else {wrapper: file, 'epoch': 1}
    assert load_and_compare(backbone(arch), file) == Misfit()


@pytest.mark.parametrize(
    ('keys', 'arch', 'message'),
    [
        (
            'pp-dat_small',
            'dat_pp_t',
            r'x.pth is DAT-S\+\+ for classification at 224, the config '
            r'builds DAT-T\+\+, .* of another shape \(patch_embed.conv1',
        ),
        ('v1-dat_tiny', 'dat_s', 'is DAT-T .* builds DAT-S.* missing'),
        ('v1-dat_tiny', 'dat_pp_s', r'is DAT-T .* builds DAT-S\+\+'),
        ('det-dat_tiny', 'dat_t', r'is DAT-T\+\+, .* builds DAT-T,'),
    ],
)
def test_another_variant_is_refused_by_name(keys, arch, message):
    with pytest.raises(UserError, match=message):
        check_fits('x.pth', entries(keys), backbone(arch))


def test_files_of_other_models_are_refused():
    file = {'conv1.weight': torch.empty(3), 'fc.bias': torch.empty(1)}
    with pytest.raises(UserError, match='x.pth .*neither DAT nor DAT'):
        check_fits('x.pth', file, backbone('dat_t'))


def test_heads_may_differ_where_only_the_backbone_counts():
    model = Detector('dat_pp_t')
    file = dict(state_dict=entries('det-dat_tiny', 'backbone.'))
    file['state_dict']['bbox_head.retina_cls.weight'] = torch.zeros(9, 4, 1, 1)
    file['state_dict']['bbox_head.extra'] = torch.zeros(9)
    misfit = load_and_compare(model, file)
    assert misfit == Misfit(
        missing=('bbox_head.retina_cls.bias',),
        unexpected=('bbox_head.extra',),
        reshaped=('bbox_head.retina_cls.weight',),
    )
    check_fits('x.pth', file, model, 'backbone.')
    with pytest.raises(UserError, match='1 entry is of another shape'):
        check_fits('x.pth', file, model)


def test_what_is_left_over_does_no_harm():
    file = dict(entries('det-dat_tiny'), extra=torch.empty(1, device='meta'))
    misfit = check_fits('x.pth', file, backbone('dat_pp_t'))
    assert misfit.unexpected == ('extra',) and not misfit.is_fatal


class Classifier(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone = backbone(arch)
        self.head = nn.Module()
        self.head.fc = nn.Linear(4, 4, device='meta')


def test_another_resolution_is_noted():
    file = dict(model=entries('pp-dat_base'))
    note = resolution_note('x.pth', file, Classifier('dat_pp_b_384'))
    assert note.startswith(
        'x.pth is DAT-B++ for classification at 224, the config builds '
        'DAT-B++ for classification at 384: '
    )
    assert 'taken as they are' in note and 'holds at 224 only' in note
    assert resolution_note('x.pth', file, Classifier('dat_pp_b')) is None
    file = dict(model=entries('v1-dat_base'))
    note = resolution_note('x.pth', file, Classifier('dat_b_384'))
    assert 'resized, and the accuracy' in note


HEADS = {
    'cls': lambda n: {'head.fc.weight': (n, 4)},
    'faster': lambda n: {'roi_head.bbox_head.fc_cls.weight': (n + 1, 4)},
    'cascade': lambda n: {'roi_head.bbox_head.0.fc_cls.weight': (n + 1, 4)},
    'retina': lambda n: {
        'bbox_head.retina_cls.weight': (9 * n, 4, 3, 3),
        'bbox_head.retina_reg.weight': (36, 4, 3, 3),
    },
    'seg': lambda n: {'decode_head.conv_seg.weight': (n, 4, 1, 1)},
}


class Headed(nn.Module):
    """A backbone and entries of a head, by name."""

    def __init__(self, shapes):
        super().__init__()
        self.backbone = backbone('dat_t')
        for name, shape in shapes.items():
            *places, last = name.split('.')
            module = self
            for place in places:
                if not hasattr(module, place):
                    module.add_module(place, nn.Module())
                module = getattr(module, place)
            weight = nn.Parameter(torch.empty(shape, device='meta'))
            module.register_parameter(last, weight)


@pytest.mark.parametrize('kind', HEADS)
def test_heads_of_other_sizes_name_both_numbers(kind):
    head = HEADS[kind]
    file = dict(state_dict=Headed(head(80)).state_dict())
    model = Headed(head(3))
    with pytest.raises(
        UserError,
        match='has a head for 80 classes, the config builds one for 3;',
    ):
        check_fits('x.pth', file, model)
    note = classes_note('x.pth', file, model)
    assert '80 classes' in note and 'for 3: what depends' in note
    assert classes_note('x.pth', file, Headed(head(80))) is None


def test_other_places_are_named():
    file = {
        f'teacher.{name}': value
        for name, value in backbone('dat_t').state_dict().items()
    }
    with pytest.raises(
        UserError, match="names; .*prefix='teacher.' with --pretrained"
    ):
        check_fits('x.pth', file, Classifier('dat_t'))


def test_the_resolution_of_dense_models_is_not():
    file = dict(state_dict=entries('det-dat_base', 'backbone.'))
    assert resolution_note('x.pth', file, Detector('dat_pp_b_384')) is None
