# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The blocks of the page on other packages run, and give what they say."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / 'docs' / 'outside_mm.md'


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_the_blocks_run(tmp_path, monkeypatch):
    for name in ('timm', 'torchvision', 'segmentation_models_pytorch'):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(
        r'^```python\n(.*?)^```', PAGE.read_text(), re.M | re.S
    )
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, str(PAGE), 'exec'), names)
        for line in block.splitlines():
            said = re.fullmatch(r'(\w[^#]*\))  # (\[.*\])', line)
            if said:
                assert eval(said[1], names) == eval(said[2]), line
    assert names['scores'].shape == (2, 10)
    assert [m.shape[2:] for m in names['maps']] == [
        (25, 40),
        (13, 20),
        (7, 10),
    ]
    assert names['found']['last_of_stage_3'].shape == (1, 4, 4, 384)
    assert names['found']['scores'].shape == (1, 10)
    sum(names['losses'].values()).backward()
    assert len(names['losses']) == 4
    body = names['detector'].backbone.body
    assert body.stages[0].blocks[0].attn.proj_qkv.weight.grad.abs().sum() > 0
    assert names['masks'].shape == (1, 5, 64, 96)
    assert (tmp_path / 'dat_tiny.pt').stat().st_size > 1e8
