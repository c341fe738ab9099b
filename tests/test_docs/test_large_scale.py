# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The tables of the page are what its function gives, of figures we have."""

import re
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).parents[2] / 'docs'
PAGE = (DOCS / 'large_scale.md').read_text()
BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', PAGE, re.M | re.S)


def functions():
    names = {}
    (source,) = [b for _, b in BLOCKS if b.startswith('def plan')]
    exec(source, names)
    return names


@pytest.mark.parametrize(
    ('job', 'title'), [('coco', 'COCO 1x:'), ('imagenet', '300 epochs:')]
)
def test_the_tables_are_worked_out(job, title):
    names = functions()
    table = PAGE.split(f'{title}\n\n')[1].split('\n\n')[0]
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in table.splitlines()[2:]
    ]
    assert [int(row[0]) for row in rows] == [1, 8, 64, 512]
    for row in rows:
        found = names['plan'](int(row[0]), int(row[1]), **names[job])
        assert row[2:] == [
            str(found['batch']),
            f'{found["hours"]:.1f}',
            f'{found["talk"]:.0%}',
            f'{found["states"]:.2f}',
            f'{found["sharded"]:.3f}',
            f'{found["cost"]:.0f}',
        ]


@pytest.mark.parametrize(
    ('job', 'config'),
    [('coco', 'mask_rcnn_dat_t_coco'), ('imagenet', 'classifier_dat_t_in1k')],
)
def test_the_figures_are_those_of_the_other_page(job, config):
    names = functions()
    (row,) = re.findall(
        rf'^\| \[[^]]+\]\(\.\./configs/{config}\.py\) \|(.*)$',
        (DOCS / 'complexity.md').read_text(),
        re.M,
    )
    cells = [cell.strip() for cell in row.split('|')]
    assert float(cells[0]) == names[job]['mparams']
    assert float(cells[2]) == names[job]['gflops']


def test_the_job_file_is_one():
    (source,) = [text for kind, text in BLOCKS if kind == 'yaml']
    job = yaml.safe_load(source)
    (container,) = job['spec']['pytorchReplicaSpecs']['Worker']['template'][
        'spec'
    ]['containers']
    root = DOCS.parent
    script, config = container['command'][1:3]
    assert (root / script).is_file() and (root / config).is_file()
