# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Models are built with all of their config."""

import pytest

from mmdat.analysis.forward import build_model
from mmdat.engine.configuration import load_config


def test_a_classifier_has_the_preprocessor_of_its_config():
    pytest.importorskip('mmpretrain')
    cfg = load_config('configs/classifier_dat_digits.py')
    found = build_model(cfg).data_preprocessor
    for name in ('mean', 'std'):
        wanted = cfg.data_preprocessor[name]
        assert getattr(found, name).flatten().tolist() == pytest.approx(wanted)
