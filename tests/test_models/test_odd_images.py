# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Images without contrast, with huge numbers and with none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import (
    BACKENDS,
    PRECISIONS,
    architectures,
    build,
    fewer_cases,
    forward,
    with_backend,
)
from versions import needs_torch

pytestmark = [pytest.mark.fuzz, needs_torch('2.4')]
FILLS = {
    'zero': lambda x: torch.zeros_like(x),
    'constant': lambda x: torch.full_like(x, 0.7),
    'huge constant': lambda x: torch.full_like(x, -1e4),
    'huge': lambda x: 1e4 * x,
    'tiny': lambda x: 1e-30 * x,
    'one bright pixel': lambda x: torch.where(x == x.max(), 1e4, 0 * x),
    'stripes': lambda x: 255.0 * (torch.arange(x.shape[3]) % 2).expand_as(x),
}


def model_and_images(draw, batch):
    backend = draw(st.sampled_from(sorted(BACKENDS, key=str)))
    kwargs = {'position_bias': 'table'} if backend == 'separable' else {}
    model = build(
        draw(architectures(BACKENDS[backend], **kwargs)),
        draw(st.integers(0, 999)),
        # Of scores, which grow with its square.
        spread=draw(st.sampled_from([1.0, 1.0, 100.0])),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    sides = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    images = torch.randn(batch, 3, *sides, generator=generator).double()
    return model, backend, images


@fewer_cases
@given(st.data())
def test_numbers_stay_finite(data):
    """Where plain PyTorch is finite, all are; in float32 it always is."""
    draw = data.draw
    model, backend, images = model_and_images(draw, draw(st.integers(1, 3)))
    images = FILLS[draw(st.sampled_from(sorted(FILLS)))](images)
    precision = draw(st.sampled_from(sorted(PRECISIONS)))
    plain = with_backend(model, 'reference')
    exact = forward(plain, images, 'float64')
    theirs = forward(plain, images, precision)
    ours = forward(with_backend(model, backend), images, precision)
    for mine, plain, true in zip(ours, theirs, exact, strict=True):
        assert true.isfinite().all()
        assert (mine.isfinite() >= plain.isfinite()).all()
        if precision != 'float16 autocast':
            assert mine.isfinite().all()
        if precision == 'float64':
            # Channels that are alike but for rounding are told apart by it.
            assert (mine - true).norm() <= 1e-6 * true.norm()


@fewer_cases
@given(st.data())
def test_no_number_stays_in_its_image(data):
    """And is NaN in all maps that plain PyTorch makes of it."""
    draw = data.draw
    model, backend, images = model_and_images(draw, 2)
    images = images.float()
    place = draw(st.integers(0, images[0].numel() - 1))
    spoilt = draw(st.integers(0, 1))
    value = draw(st.sampled_from([float('nan'), float('inf')]))
    images[spoilt].view(-1)[place] = value
    plain = forward(with_backend(model, 'reference'), images, 'float32')
    ours = forward(with_backend(model, backend), images, 'float32')
    for mine, theirs in zip(ours, plain, strict=True):
        assert (mine.isnan() >= theirs.isnan()).all()
        assert mine[1 - spoilt].isfinite().all()
        if 'N' not in ''.join(s.attentions for s in model.arch.stages):
            assert torch.equal(mine.isnan(), theirs.isnan())
    alone = images[1 - spoilt][None]
    alone = forward(with_backend(model, backend), alone, 'float32')
    for mine, wanted in zip(ours, alone, strict=True):
        torch.testing.assert_close(
            mine[1 - spoilt][None], wanted, rtol=1e-3, atol=1e-3
        )
