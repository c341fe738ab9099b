# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The benchmark from the command line; nothing here asks how fast."""

import csv
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from test_tools.conftest import run

COMMAND = Path(__file__).parents[3] / 'projects' / 'benchmark' / 'run.py'


@pytest.mark.slow
def test_end_to_end(tmp_path):
    foreign = tmp_path / 'foreign.py'
    foreign.write_text(
        'from torch import nn\ndef make():\n    return nn.Conv2d(3, 9, 4, 4)\n'
    )
    said = run(
        *(sys.executable, COMMAND),
        *('--backbones', 'dat_pp_t', '--shapes', '32x64'),
        *('--modes', 'train', '--rounds', 2, '--threads', 1),
        *('--foreign', f'other={foreign}:make', '--baseline', 'other'),
        *('--out', tmp_path / 'out', '--markdown', tmp_path / 'table.md'),
    )
    with (tmp_path / 'out' / 'benchmark.csv').open(newline='') as stream:
        ours, other = csv.DictReader(stream)
    assert (ours['subject'], other['subject']) == ('dat_pp_t', 'other')
    for row in (ours, other):
        assert (row['status'], row['runs'], row['threads']) == ('ok', '2', '1')
        assert float(row['median_s']) > 0
    assert int(ours['parameters']) == 23_450_772
    assert float(ours['time / other']) > 0
    assert float(other['time / other']) == 1
    assert 'train, 1x3x32x64' in said and 'dat_pp_t' in said
    assert (tmp_path / 'out' / 'benchmark.png').stat().st_size > 0
    text = (tmp_path / 'table.md').read_text()
    assert '| dat_pp_t |' in text and '--markdown' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--backbones', 'vit'], "A backbone must be one of dat_t.*got 'vit'"),
        (['--shapes', '224'], "--shapes takes sizes.*got '224'"),
        (['--backends', 'fast'], "--backends takes auto.*got 'fast'"),
        (['--rounds', '0'], '--rounds must be positive; got 0'),
        (['--ops', 'window'], "An attention must be one of.*got 'window'"),
        (['--ops', '--shapes', '8x8'], '--ops has sizes of its own'),
        (['--foreign', 'a=b.py:c'], "no file 'b.py'"),
        (['--preset', 'cpu', '--batch', '3'], 'Nothing of --preset cpu'),
    ],
)
def test_errors_are_one_sentence(arguments, message, monkeypatch, capsys):
    said = run_here(arguments, monkeypatch, capsys)
    assert said.startswith('benchmark: ') and said.count('\n') == 1
    assert re.search(message, said), said


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_gpu_preset_without_a_gpu(monkeypatch, capsys):
    said = run_here(['--preset', 'gpu'], monkeypatch, capsys)
    assert 'no CUDA device' in said and '--device cpu' in said


def run_here(arguments, monkeypatch, capsys):
    """The sentence with which the command ends, in this process."""
    monkeypatch.setattr('sys.argv', [str(COMMAND), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(COMMAND), run_name='__main__')
    assert ended.value.code == 2
    return capsys.readouterr().err
