# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Rows, CSV, Markdown and picture of fixed numbers."""

import csv
import os

import pytest
from cases import (
    Baseline,
    Case,
    Conditions,
    Measurement,
    Setting,
    Subject,
)
from report import make_rows, markdown, plot, warning, write_csv

import mmdat

CONDITIONS = Conditions(amp='bf16', threads=2, load=0.5)
BASELINES = [Baseline('swin_t'), Baseline('theirs', of='dat_t')]
COLUMNS = [
    'date',
    'mmdat',
    'torch',
    'machine',
    'load',
    'threads',
    'device',
    'dtype',
    'setting',
    'subject',
    'name',
    'backend',
    'compiled',
    'kind',
    'mode',
    'batch',
    'height',
    'width',
    'parameters',
    'status',
    'runs',
    'median_s',
    'min_s',
    'max_s',
    'rounds_s',
    'peak_memory_mb',
    'memory_source',
]


@pytest.fixture(scope='module')
def rows():
    rows = []
    for height in (224, 448):
        setting = Setting('inference', 2, height, 224)
        measurements = [
            Measurement(
                Case(Subject(name, backend), setting, CONDITIONS),
                seconds=seconds,
                memory=memory,
                memory_source='resident (VmHWM)',
                parameters=28_000_000,
            )
            for name, backend, seconds, memory in (
                ('dat_t', None, (0.3, 0.1, 0.2), 4 * 10**8),
                ('dat_t', 'reference', (0.6, 0.2, 0.4), 10**9),
                ('swin_t', None, (0.6, 0.1, 0.4), 10**9),
            )
        ]
        case = Case(Subject('theirs'), setting, CONDITIONS)
        measurements.append(Measurement(case, 'out of memory'))
        rows += make_rows(measurements, CONDITIONS, BASELINES)
    return rows


def test_conditions_are_in_every_row(rows, tmp_path):
    write_csv(rows, tmp_path / 'benchmark.csv')
    with (tmp_path / 'benchmark.csv').open(newline='') as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == 8
    assert list(read[0]) == [
        *COLUMNS,
        *('time / swin_t', 'memory / swin_t'),
        *('time / theirs', 'memory / theirs'),
    ]
    for row in read:
        assert row['mmdat'] == mmdat.__version__
        assert row['dtype'] == 'bfloat16 autocast' and row['threads'] == '2'
        assert all(row[c] for c in ('date', 'torch', 'machine', 'device'))
        assert (row['batch'], row['width']) == ('2', '224')
    first, reference, _, failed = read[:4]
    assert (first['median_s'], first['min_s'], first['max_s']) == (
        '0.2',
        '0.1',
        '0.3',
    )
    assert first['rounds_s'] == '0.3 0.1 0.2' and first['runs'] == '3'
    assert float(first['time / swin_t']) == 0.5  # of 0.5, 1, 0.5
    assert float(first['memory / swin_t']) == 0.4
    assert first['peak_memory_mb'] == '400.0'
    assert (first['backend'], reference['backend']) == ('auto', 'reference')
    assert first['time / theirs'] == ''
    assert failed['status'] == 'out of memory' and failed['median_s'] == ''


def test_markdown(rows):
    text = markdown(rows, ['swin_t', 'theirs'], 'python a.py')
    assert 'python a.py' in text and 'bfloat16' in text
    assert text.count('**inference, 2x3x') == 2
    lines = [line for line in text.splitlines() if line.startswith('|')]
    assert len(lines) == 2 * (2 + 4)
    assert {line.count('|') for line in lines} == {lines[0].count('|')}
    cells = [cell.strip() for cell in lines[2].split('|')[1:-1]]
    assert cells == [
        *('dat_t', '28.00', '0.200', '0.100', '0.300'),
        *('0.500', '400.0', '0.400', ''),
    ]
    assert 'theirs |' in lines[5] and 'out of memory' in lines[5]
    assert 'time / theirs' not in text  # a column without numbers


def test_a_busy_machine_is_told():
    cores = os.cpu_count()
    assert warning(Conditions()) is None
    assert warning(Conditions(load=0.1 * cores)) is None
    assert 'machine is busy' in warning(Conditions(load=0.9 * cores))


def test_picture(rows, tmp_path):
    assert plot(rows, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
    failed = [row for row in rows if row['status'] != 'ok']
    assert failed and not plot(failed, tmp_path / 'b.png')
    assert not (tmp_path / 'b.png').exists()
