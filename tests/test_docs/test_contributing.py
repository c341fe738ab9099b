# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The kind of attention that CONTRIBUTING.md adds does what it says."""

import re
import textwrap
from pathlib import Path

import torch

from mmdat.models import DAT, arch, block

PAGE = Path(__file__).parents[2] / 'CONTRIBUTING.md'


def test_adding_a_kind_of_attention(monkeypatch):
    text = PAGE.read_text()
    blocks = re.findall(r'^   ```python\n(.*?)^   ```', text, re.S | re.M)
    module, builder = (textwrap.dedent(code) for code in blocks)
    names = dict(vars(block))
    exec(module, names)
    exec(builder, names)
    monkeypatch.setattr(arch, 'LETTERS', arch.LETTERS + 'A')
    monkeypatch.setitem(block.KINDS, 'A', names['_axial'])
    small = dict(embed_dims=[8] * 4, depths=[1] * 4, num_heads=[2] * 4)
    model = DAT(small, attentions=['A', 'A', 'D', 'A'])
    outs = model(torch.rand(1, 3, 40, 33))
    assert [tuple(out.shape[2:]) for out in outs][0] == (10, 9)
    sum(out.sum() for out in outs).backward()
    assert model.stages[0].blocks[0].attn.kv.weight.grad.abs().sum() > 0


def test_letters_have_a_kind():
    assert set(arch.LETTERS) == set(block.KINDS)
