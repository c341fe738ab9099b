# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is built to be measured."""

from importlib.util import find_spec

import pytest
import torch
from cases import AttentionSizes, Case, Conditions, Setting, Subject
from subjects import (
    PEERS,
    build_attention,
    build_backbone,
    build_step,
    check_backbone,
    load_factory,
    tensors,
)
from torch import nn

from mmdat import DAT
from mmdat.utils.errors import UserError

DEFORMABLE = AttentionSizes('deformable', 4, 2, (3, 5), (14, 14))
PLUS_PLUS = AttentionSizes('deformable', 4, 2, (3, 5), (56, 56), 'dat_pp')
NEIGHBORHOOD = AttentionSizes('neighborhood', 3)


@pytest.mark.parametrize(
    ('name', 'sizes'),
    [
        ('deformable_attention', DEFORMABLE),
        ('deformable_attention', PLUS_PLUS),
        ('sdpa', DEFORMABLE),
        ('neighborhood_attention', NEIGHBORHOOD),
    ],
)
@pytest.mark.parametrize('mode', ['inference', 'train'])
def test_attentions_run(name, sizes, mode):
    setting = Setting(mode, 2, 8, 9, sizes)
    build_step(Case(Subject(name), setting, Conditions())).run()


@pytest.mark.parametrize(
    ('op', 'sizes'),
    [
        ('deformable_attention', DEFORMABLE),
        ('deformable_attention', PLUS_PLUS),
        ('neighborhood_attention', NEIGHBORHOOD),
    ],
)
def test_backends_get_the_same_to_do(op, sizes):
    """Auto and reference do the same, and all inputs matter."""
    setting = Setting('train', 2, 8, 9, sizes)
    results = []
    for backend in (None, 'reference'):
        call = build_attention(Subject(op, backend), setting)
        inputs = [x.requires_grad_() for x in call.inputs]
        out = call.run(*inputs)
        assert out.shape == (2, 8, 9, sizes.heads, 32)
        out.square().sum().backward()
        assert all(x.grad.abs().sum() > 0 for x in inputs)
        results.append((out, *(x.grad for x in inputs)))
    for ours, reference in zip(*results):
        assert (ours - reference).abs().max() < 1e-3


def test_plain_attention_has_the_same_queries_keys_and_values():
    setting = Setting('inference', 2, 8, 9, DEFORMABLE)
    ours = build_attention(Subject('deformable_attention'), setting)
    plain = build_attention(Subject('sdpa'), setting)
    for a, b in zip(ours.inputs, plain.inputs):
        assert torch.equal(a, b)
    q, k, _ = plain.inputs
    assert q.shape == (2, 8, 9, 4, 32) and k.shape == (2, 3, 5, 4, 32)
    assert len(plain.inputs) == 3


def test_ours_with_its_backend():
    with pytest.raises(ValueError, match='backend must be one that'):
        build_backbone(Subject('dat_t', 'unheard-of'))
    model = build_backbone(Subject('dat_t', 'reference'))
    assert isinstance(model, DAT)
    assert {m.backend for m in model.modules() if hasattr(m, 'backend')} == {
        'reference'
    }


@pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is missing')
@pytest.mark.parametrize('name', PEERS)
def test_peers(name):
    model = build_backbone(Subject(name))
    model.eval()
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    # as in the papers, without the classifier
    expected = dict(swin_t=27.5, pvt_v2_b2=24.8, resnet50=23.5)
    assert millions == pytest.approx(expected[name], abs=0.1)
    with torch.no_grad():
        outs = model(torch.rand(1, 3, 64, 64))
    assert [out.shape[-1] for out in outs] == [16, 8, 4, 2]
    setting = Setting('train', 1, 64, 64)
    step = build_step(Case(Subject(name), setting, Conditions()))
    assert step.parameters == sum(p.numel() for p in model.parameters())
    step.run()


def test_unknown_backbone():
    check_backbone('dat_t')
    check_backbone('swin_t')
    with pytest.raises(UserError, match="swin_t.*got 'vit'.*--foreign"):
        check_backbone('vit')


def test_factories(tmp_path):
    (tmp_path / 'beside_it.py').write_text('CHANNELS = 5\n')
    file = tmp_path / 'foreign.py'
    file.write_text(
        'from beside_it import CHANNELS\nfrom torch import nn\n'
        'def make():\n    return nn.Conv2d(3, CHANNELS, 1)\n'
    )
    model = build_backbone(Subject('x', factory=f'{file}:make'))
    assert isinstance(model, nn.Conv2d) and model.out_channels == 5
    with pytest.raises(UserError, match="has no function 'other'"):
        load_factory(f'{file}:other')
    with pytest.raises(UserError, match="no file 'missing.py'"):
        load_factory('missing.py:make')
    with pytest.raises(UserError, match='NAME=file.py:function'):
        load_factory('make')


def test_a_step_leaves_no_gradients_behind():
    setting = Setting('train', 2, 8, 9, NEIGHBORHOOD)
    step = build_step(
        Case(Subject('neighborhood_attention'), setting, Conditions())
    )
    step.run()
    leaves = step.run.__closure__
    found = [
        x
        for cell in leaves
        if isinstance(cell.cell_contents, tuple)
        for x in cell.cell_contents
    ]
    assert found and all(x.requires_grad and x.grad is None for x in found)


def test_tensors_of_a_nest():
    a, b = torch.ones(1, requires_grad=True), torch.ones(2, requires_grad=True)
    assert list(tensors(dict(x=[a, torch.ones(3)], y=(None, b)))) == [a, b]
