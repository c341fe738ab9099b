# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The notebook runs from its first cell to its last."""

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')
pytest.importorskip('ipykernel')
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    # A kernel of this Python, whatever is registered on the machine.
    kernel = tmp_path / 'kernels' / 'python3'
    kernel.mkdir(parents=True)
    command = [sys.executable, '-m', 'ipykernel_launcher', '-f']
    spec = dict(
        argv=[*command, '{connection_file}'],
        display_name='3',
        language='python',
    )
    (kernel / 'kernel.json').write_text(json.dumps(spec))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    monkeypatch.setenv('JUPYTER_RUNTIME_DIR', str(tmp_path / 'runtime'))
    notebook = nbformat.read(ROOT / 'demo' / 'tour.ipynb', as_version=4)
    assert all(not c.get('outputs') for c in notebook.cells)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name='python3',
        resources={'metadata': {'path': str(ROOT / 'demo')}},
    )
    client.execute(env=dict(os.environ))
    outputs = [
        output for cell in notebook.cells for output in cell.get('outputs', [])
    ]
    text = ''.join(o.get('text', '') for o in outputs)
    pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
    assert '(1, 512, 7, 7)' in text
    assert len(pictures) == 3
    difference = float(text.split('largest difference ')[1].split()[0])
    assert difference < 1e-5
