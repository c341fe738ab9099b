# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Counting from the command line."""

import pytest

from .conftest import ROOT, tool


def test_get_flops_needs_neither_data_nor_weights():
    pytest.importorskip('mmdet')
    out = tool(
        'analysis_tools/get_flops.py',
        'configs/mask_rcnn_dat_digits.py',
        *('--shape', 96, 128),
    )
    for part in ('deformable attention', 'q k^T', 'roi_head.mask_head'):
        assert part in out
    assert 'at 96 x 128 (H x W)' in out and 'not include\nnorms' in out
    assert 'FLOPs: ' in out and 'Parameters: ' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('configs/mask_rcnn_dat_digits.py', '--shape', 0), 'got 0'),
        (('configs/_base_/schedules/coco_1x.py',), 'has none'),
    ],
)
def test_get_flops_says_what_is_wrong(arguments, message):
    out = tool('analysis_tools/get_flops.py', *arguments, ok=False)
    last = out.strip().splitlines()[-1]
    assert last.startswith('get_flops: ') and message in last


def test_the_tables_of_the_documents_are_made_by_a_command(tmp_path):
    pytest.importorskip('mmpretrain')
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- tables -->\n<!-- end of tables -->\nafter\n')
    name = 'classifier_dat_t_in1k'
    tool(
        'analysis_tools/complexity_table.py',
        *('--only', name, '--write', page),
    )
    made = page.read_text().splitlines()
    assert made[0] == 'before' and made[-1] == 'after'
    document = (ROOT / 'docs' / 'complexity.md').read_text().splitlines()
    assert set(made[1:-1]) <= set(document)
    assert any(name in text for text in made)
