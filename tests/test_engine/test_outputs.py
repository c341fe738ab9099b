# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
from mmengine.config import Config

from mmdat.engine.outputs import draw_predictions


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_every_picture_is_drawn(scope):
    """Not one of 5000 (mmpretrain) or the first of 50 (mmseg 1.2)."""
    hooks = dict(visualization=dict(type='Any'))
    cfg = Config(dict(default_scope=scope, default_hooks=hooks, visualizer={}))
    draw_predictions(cfg, 'pictures')
    assert cfg.default_hooks.visualization.interval == 1
