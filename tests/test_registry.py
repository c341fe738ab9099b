# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""How DAT is found, each time in a process where nothing is imported."""

import subprocess
import sys

import pytest

BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_prefixed_type_needs_no_import():
    out = python(
        'from mmengine.registry import MODELS\n'
        "model = MODELS.build(dict(type='mmdat.DAT', arch='dat_t'))\n"
        'print(type(model).__module__)'
    )
    assert out.endswith('mmdat.models.dat')


def test_prefixed_type_works_in_another_scope():
    pytest.importorskip('mmdet')
    out = python(
        'from mmdet.registry import MODELS\n'
        "with MODELS.switch_scope_and_registry('mmdet') as registry:\n"
        "    model = registry.build(dict(type='mmdat.DAT', arch='dat_t'))\n"
        'print(type(model).__name__)'
    )
    assert out.endswith('DAT')


def test_bare_type_works_after_the_import_of_a_config(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(
        "custom_imports = dict(imports=['mmdat'],"
        ' allow_failed_imports=False)\n'
        "model = dict(type='DAT', arch='dat_pp_t')\n"
    )
    for scope in ('mmdet', 'mmseg', 'mmpretrain'):
        out = python(
            'from mmengine.config import Config\n'
            'from mmengine.registry import MODELS, init_default_scope\n'
            f'cfg = Config.fromfile({str(config)!r})\n'
            f'init_default_scope({scope!r})\n'
            'print(type(MODELS.build(cfg.model)).__name__)'
        )
        assert out.endswith('DAT')


def test_only_torch_and_mmengine_are_needed():
    names = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'cv2')
    out = python(
        BLOCK.format(names=names) + 'import torch, mmdat\n'
        "assert 'mmdat.visualization' not in sys.modules\n"
        "model = mmdat.DAT('dat_t')\n"
        'model.init_weights()\n'
        'print(len(model(torch.rand(1, 3, 32, 32))))'
    )
    assert out.endswith('4')


def test_without_mmengine_the_error_says_what_to_install():
    code = (
        'import importlib.util\n'
        'find = importlib.util.find_spec\n'
        "importlib.util.find_spec = lambda n: None if n == 'mmengine' "
        'else find(n)\n'
        'import mmdat'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert 'pip install onedl-mmengine' in done.stderr.splitlines()[-1]
