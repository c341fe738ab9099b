# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Configs of other projects inherit ours, read by mmengine alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmdat
from mmdat.engine.configuration import load_config
from mmdat.utils.errors import UserError

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/use_in_your_config.md').read_text()


def block(start, language='python'):
    """The code block of the page that starts so."""
    return next(
        text
        for text in re.findall(rf'```{language}\n(.*?)```', PAGE, re.S)
        if text.startswith(start)
    )


def test_a_config_elsewhere_inherits_ours(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f'{block("_base_ = __import__")}work_dir = "w"\n')
    code = (
        'import sys; from mmengine.config import Config; '
        'assert "mmdat" not in sys.modules; '
        f'cfg = Config.fromfile({str(path)!r}); '
        'print(cfg.model.backbone.type, cfg.work_dir, cfg.default_scope)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert done.stdout.split() == ['DAT', 'w', 'mmdet'], done.stderr


def test_a_new_style_config_inherits_one_of_ours(tmp_path):
    from mmengine.config import Config

    whole = Config.fromfile(mmdat.config_path('mask_rcnn_dat_t_coco'))
    whole.dump(tmp_path / 'base.py')
    path = tmp_path / 'mine.py'
    path.write_text(block('from mmengine.config import read_base'))
    cfg = load_config(str(path))
    assert cfg.model.backbone.arch == 'dat_pp_t'
    assert cfg.model.neck.in_channels == [64, 128, 256, 512]
    assert cfg.model.roi_head.bbox_head.num_classes == 80


def test_names_that_are_near():
    assert mmdat.config_path('mask_rcnn_dat_t_coco.py').endswith('coco.py')
    with pytest.raises(UserError, match='it has mask_rcnn_dat_t_coco'):
        mmdat.config_path('mask_rcnn_dat_t_coc')
    with pytest.raises(UserError, match='it has mask_rcnn_dat_t_coco,'):
        mmdat.config_path('mask-rcnn_dat-t_fpn_1x_coco')
    with pytest.raises(FileNotFoundError):
        mmdat.config_path('nothing_like_it')


def test_a_name_without_its_folder_is_offered_with_it():
    with pytest.raises(UserError, match=r'is configs/mask_rcnn_dat_digits.py'):
        load_config('mask_rcnn_dat_digits.py')


PURE = """
from mmdet.models import RetinaNet
default_scope = None
default_hooks = dict(finite=None, seed=None, timer=None)
model = dict(type=RetinaNet)
"""


def test_configs_without_a_scope_get_that_of_their_model(tmp_path):
    path = tmp_path / 'pure.py'
    path.write_text(PURE)
    cfg = load_config(str(path))
    assert cfg.default_scope == 'mmdet'
    # mmengine takes off its own hooks; to it the others are an error.
    assert dict(cfg.default_hooks) == dict(timer=None)
    path.write_text("model = dict(type='mmseg.EncoderDecoder')\n")
    assert load_config(str(path)).default_scope == 'mmseg'
    path.write_text('default_scope = None\n')
    assert load_config(str(path)).default_scope == 'mmengine'
