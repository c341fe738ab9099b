# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Imports run one way: downwards between the folders, and in no circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / 'mmdat'
# A folder imports from those before it only.
FLOORS = (
    *('utils', 'registry', 'version', 'ops', 'checkpoints', 'models'),
    *('datasets', 'analysis', 'engine', 'zoo', 'visualization'),
)


def name_of(path):
    parts = ('mmdat', *path.relative_to(ROOT).with_suffix('').parts)
    return '.'.join(parts).removesuffix('.__init__')


MODULES = {name_of(path): path for path in ROOT.rglob('*.py')}


def imported(module):
    """Modules of mmdat that a module imports, wherever in its text."""
    path = MODULES[module]
    package = (
        module if path.name == '__init__.py' else module.rpartition('.')[0]
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: -(node.level - 1) or None]
            base = '.'.join([*above * (node.level > 0), node.module or ''])
            base = base.strip('.')
            names = [f'{base}.{alias.name}' for alias in node.names]
            names = [n if n in MODULES else base for n in names]
        else:
            continue
        yield from (n for n in names if n in MODULES)


def floor(module):
    if module == 'mmdat.utils.collect_env':  # looks at everything
        return len(FLOORS)
    return FLOORS.index(module.split('.')[1])


def test_imports_run_downwards():
    up = [
        f'{module} imports {other}'
        for module in MODULES
        for other in imported(module)
        if 'mmdat' not in (module, other) and floor(other) > floor(module)
    ]
    assert not up


def test_no_circles():
    graph = {
        # A package's __init__ gathers what its modules have.
        module: {n for n in imported(module) if not module.startswith(f'{n}.')}
        - {module}
        for module in MODULES
        if module != 'mmdat'
    }
    TopologicalSorter(graph).prepare()


UNCHANGED = """
import torch
from torch.nn.modules import module

def state():
    found = {(k.__name__, n): v for k in (
        torch.nn.Module, torch.nn.Linear, torch.nn.LayerNorm, torch.Tensor
    ) for n, v in vars(k).items() if callable(v)}
    hooks = [v for n, v in vars(module).items() if n.startswith('_global_')]
    return found, str(hooks), torch.get_default_dtype()

import mmengine.model, mmengine.registry, mmengine.logging
before = state()
import mmdat
assert state() == before, 'import mmdat changes torch'
"""


def test_importing_leaves_torch_as_it_was():
    done = subprocess.run(
        [sys.executable, '-c', UNCHANGED], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
