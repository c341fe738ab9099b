# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Wrapped data sets and evaluators in every form, for tests of a model."""

import family
import pytest
from mmengine.config import ConfigDict

from mmdat.engine.outputs import check_out, draw_predictions, save_label_maps
from mmdat.engine.tta import enable_tta
from mmdat.utils.errors import UserError

pytest.importorskip('mmseg')


def config():
    cfg = family.load('upernet_dat_digits')
    for name in ('tta_pipeline', 'tta_model'):
        cfg.pop(name, None)
    return cfg


WRAPS = {
    'plain': lambda one: one,
    'repeat': lambda one: dict(type='RepeatDataset', times=2, dataset=one),
    'concat': lambda one: dict(type='ConcatDataset', datasets=[one, one]),
    'both': lambda one: dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='ConcatDataset', datasets=[one]),
    ),
}


@pytest.mark.parametrize('wrap', WRAPS)
def test_augmentation_reaches_wrapped_data_sets(wrap):
    cfg = config()
    inner = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = ConfigDict(WRAPS[wrap](inner))
    enable_tta(cfg)
    found = cfg.test_dataloader.dataset
    while 'pipeline' not in found:
        found = found.get('dataset') or found['datasets'][-1]
    assert found.pipeline[-1].type == 'TestTimeAug'
    assert cfg.model.type == 'SegTTAModel'


def test_augmentation_of_an_unknown_package():
    cfg = config()
    cfg.default_scope = 'mmrotate'
    with pytest.raises(UserError, match='needs a tta_model in the config'):
        enable_tta(cfg)


FORMS = {
    'one': lambda one: one,
    'list': lambda one: [dict(type='Other'), one],
    'metrics': lambda one: dict(type='Evaluator', metrics=[one]),
    'class': lambda one: dict(one, type=type('IoUMetric', (), {})),
}


@pytest.mark.parametrize('form', FORMS)
def test_label_maps_are_written_by_the_metric_that_can(form):
    from mmdat.engine.data_files import evaluators_of

    cfg = config()
    cfg.test_evaluator = FORMS[form](dict(type='IoUMetric'))
    save_label_maps(cfg, 'maps')
    written = [one.get('output_dir') for one in evaluators_of(cfg, 'test')]
    assert written[-1] == 'maps' and written[:-1] in ([], [None])


def test_no_metric_that_writes_label_maps():
    cfg = config()
    cfg.test_evaluator = dict(type='Other')
    with pytest.raises(UserError, match='and .* has none; add one'):
        save_label_maps(cfg, 'maps')


def test_names_of_outputs(tmp_path):
    cfg = config()
    check_out(cfg, str(tmp_path / 'maps'))
    with pytest.raises(UserError, match='must name a folder'):
        check_out(cfg, 'x.pkl')
    cfg.default_scope = 'mmdet'
    check_out(cfg, 'x.pkl')
    for name in ('x.json', 'maps'):
        with pytest.raises(UserError, match=r'must name a \.pkl file'):
            check_out(cfg, name)


def test_pictures_without_what_draws_them():
    cfg = config()
    cfg.visualizer = None
    with pytest.raises(UserError, match='needs a visualizer'):
        draw_predictions(cfg, 'pictures')
    cfg.default_hooks = None
    with pytest.raises(UserError, match='default_hooks.visualization'):
        draw_predictions(cfg, 'pictures')
