# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""TorchScript traces: saved, loaded and run, they are right."""

import pytest
import torch
from versions import needs_torch

from mmdat.models import DAT
from mmdat.visualization import DATRecorder

SMALL = dict(embed_dims=[16] * 4, num_heads=2, mlp_ratio=1)
BIASES = ['table', 'none', 'log_continuous', 'depthwise_conv']
KINDS = {
    'windows': ['L', 'S', 'D', 'D'],
    'others': ['NX', 'PQ', 'ED', 'FD'],
}


def traced(family, kinds, tmp_path, size):
    """A model, and its trace from a file."""
    model = DAT(
        arch=dict(
            SMALL,
            depths=[len(stage) for stage in kinds],
            family=family,
            attentions=kinds,
        ),
        img_size=64,
        window_size=3,
        neighborhood_size=3,
        offset_range=2 if family == 'dat' else -1,
        position_bias=BIASES,
    ).eval()
    with torch.no_grad():
        trace = torch.jit.trace(model, torch.rand(1, 3, *size))
    trace.save(tmp_path / 'trace.pt')
    return model, torch.jit.load(tmp_path / 'trace.pt')


@pytest.mark.parametrize(
    ('family', 'name'), [('dat', 'windows'), ('dat_pp', 'others')]
)
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_trace_is_right_at_any_size(name, family, tmp_path):
    size = 48, 80
    model, trace = traced(family, KINDS[name], tmp_path, size)
    # As many pixels, the other way round; others; with axes of one key.
    others = [size[::-1], (44, 77), (64, 96), (36, 20)]
    with torch.no_grad():
        for batch, sides in [(1, size), (2, size)] + [(1, o) for o in others]:
            images = torch.rand(batch, 3, *sides)
            for got, wanted in zip(trace(images), model(images), strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def deformable(**kwargs):
    """A model with deformable attention, which has the most backends."""
    model = DAT(
        arch=dict(SMALL, depths=[1] * 4, attentions=['D'] * 4),
        img_size=64,
        **kwargs,
    )
    return model.eval().requires_grad_(False)


def trace(model):
    return torch.jit.trace(model, torch.rand(1, 3, 48, 80), check_trace=False)


@needs_torch('2.4')
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_backend_that_cannot_be_exported_is_refused():
    with pytest.raises(ValueError, match='plain operations; set backend=None'):
        trace(deformable(backend='separable'))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_recorded_model_is_not_exported():
    model = deformable()
    with DATRecorder(model), pytest.raises(ValueError, match='cannot be tr'):
        trace(model)
