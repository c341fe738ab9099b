# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The published table is what is measured, and says what differs."""

import re
from pathlib import Path

import pytest

from mmdat.analysis.published import SOURCES, TABLES
from mmdat.analysis.table import Cost, line, measure
from mmdat.engine.configuration import load_config

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / 'docs' / 'complexity.md').read_text()
ROWS = {row.config: row for rows in TABLES.values() for row in rows}


def test_every_published_model_has_a_row():
    """Schedules do not change what a model costs."""
    models = {
        path.stem.replace('_3x', '')
        for path in (ROOT / 'configs').glob('*.py')
        if 'digits' not in path.stem
    }
    assert {name.replace('_3x', '') for name in ROWS} == models
    assert all((ROOT / 'configs' / f'{name}.py').is_file() for name in ROWS)
    for row in ROWS.values():
        known = (row.parameters is not None, row.flops is not None)
        letters = row.sources or '  '
        assert known == tuple(letter in SOURCES for letter in letters)


@pytest.mark.parametrize(
    ('name', 'package'),
    [
        ('classifier_dat_pp_t_in1k', 'mmpretrain'),
        ('retinanet_dat_t_coco', 'mmdet'),
    ],
)
def test_rows_are_as_measured(name, package):
    pytest.importorskip(package)
    cost = measure(load_config(str(ROOT / 'configs' / f'{name}.py')))
    assert line(ROWS[name], cost) in DOCUMENT.splitlines()


def test_a_line():
    row = ROWS['retinanet_dat_t_coco']._replace(sources='R ')
    cells = line(row, Cost(38_400_000, 280_000_000_000, 30_000_000_000))
    assert cells.split(' | ')[1:] == [
        '38.4',
        '38 R',
        '280',
        '250',
        '253',
        '+10.7%',
        '-1.2% |',
    ]


def test_differences_over_two_per_cent_are_those_explained():
    different = set()
    for title, table in re.findall(r'### (.*?)\n\n((?:\|.*\n)+)', DOCUMENT):
        for text in table.splitlines()[2:]:
            cells = [cell.strip() for cell in text.strip('|').split('|')]
            model = cells[0][1 : cells[0].index(']')]
            method = re.split(' at |,', title)[0]
            if cells[5] and abs(float(cells[6].rstrip('%'))) > 2:
                different.add((method, model, 'FLOPs'))
            if cells[2]:
                reported = float(cells[2].split()[0])
                if abs(float(cells[1]) / reported - 1) > 0.02:
                    different.add((method, model, 'parameters'))
    dense = ('RetinaNet', 'Mask R-CNN', 'Cascade Mask R-CNN')
    dense += ('UPerNet', 'Semantic FPN')
    explained = {
        (method, model, 'FLOPs')
        for method in dense
        for model in ('DAT-T', 'DAT-S', 'DAT-B')
    }
    explained |= {
        ('Mask R-CNN', 'DAT-T++', 'FLOPs'),
        ('Mask R-CNN', 'DAT-S++', 'FLOPs'),
        ('Mask R-CNN', 'DAT-T', 'parameters'),
        ('Mask R-CNN', 'DAT-S', 'parameters'),
        ('Classification', 'DAT-T', 'parameters'),
    }
    assert different and different <= explained
