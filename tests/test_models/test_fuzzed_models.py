# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whole backbones on images of any size, type and memory layout.

The reference backend in float64 is what all others are measured against; in
turn test_fuzzed_attention.py measures it against the oracle.
"""

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from small_models import (
    BACKENDS,
    LAYOUTS,
    PRECISIONS,
    STRIDES,
    architectures,
    build,
    fewer_cases,
    forward,
    sizes,
    with_backend,
)
from versions import needs_torch

pytestmark = [pytest.mark.fuzz, needs_torch('2.4')]


def distance(a, b):
    return (a - b).norm().item()


def error_of_plain(model, images, precision):
    """Largest relative error of plain PyTorch at each stage, over images.

    By luck it is small on a few numbers, so that small images, which have few,
    are joined by others of their size.
    """
    number = min(30_000 // images[0, 0].numel(), 15)
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(number, *images.shape[1:], generator=generator)
    images = torch.cat([images, others.to(images.dtype)])
    exact = forward(model, images, 'float64')
    plain = forward(model, images, precision)
    return [
        max(distance(a, b) / b.norm() for a, b in zip(*pair, strict=True))
        for pair in zip(plain, exact, strict=True)
    ], [true[: len(images) - number] for true in exact]


def draw_images(draw, **kwargs):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    height, width = draw(sizes(**kwargs))
    batch = draw(st.integers(1, 4))
    if height * width * batch > 500_000:
        batch = 1
    return torch.randn(
        *(batch, 3, height, width), generator=generator, dtype=torch.float64
    )


def compare(draw, kwargs, backend):
    images = draw_images(draw)
    precision = draw(st.sampled_from(sorted(PRECISIONS)))
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    event(precision)
    model = build(kwargs, draw(st.integers(0, 999)))
    images = images.to(PRECISIONS[precision][0])
    plain = with_backend(model, 'reference')
    with torch.no_grad():
        errors, exact = error_of_plain(plain, images, precision)
    with torch.set_grad_enabled(draw(st.booleans())):
        fast = with_backend(model, backend)
        images = LAYOUTS[layout](images)
        ours = forward(fast, images, precision)
    batch, _, height, width = images.shape
    event('sides from 32 on' if min(height, width) >= 32 else 'less')
    dtype, autocast = PRECISIONS[precision]
    eps = torch.finfo(autocast or dtype).eps
    for stage, stride, mine, true, error in zip(
        model.arch.stages, STRIDES, ours, exact, errors, strict=True
    ):
        sides = -(-height // stride), -(-width // stride)
        assert mine.shape == (batch, stage.dim, *sides)
        assert mine.isfinite().all()
        limit = 2 * error + eps
        if precision == 'float64':  # in which plain PyTorch is the truth
            limit = 1e-12
        assert distance(mine, true) <= limit * true.norm()


@fewer_cases
@given(st.data())
def test_chosen_backends(data):
    """Every kind of attention, as it runs if nothing is asked for."""
    compare(data.draw, data.draw(architectures()), None)


@fewer_cases
@given(st.data())
def test_sdpa_in_tiles(data):
    compare(data.draw, data.draw(architectures('LSN')), 'sdpa')


@fewer_cases
@given(st.data())
def test_sdpa_in_chunks(data):
    compare(data.draw, data.draw(architectures('D')), 'sdpa')


@fewer_cases
@given(st.data())
def test_separable(data):
    kwargs = data.draw(architectures('D', position_bias='table'))
    compare(data.draw, kwargs, 'separable')


@fewer_cases
@given(st.data())
def test_gradients(data):
    """Those of the image and of every parameter, exact and in low types."""
    draw = data.draw
    backend, letters = draw(st.sampled_from(sorted(BACKENDS.items(), key=str)))
    fixed = {'position_bias': 'table'} if backend == 'separable' else {}
    model = build(draw(architectures(letters, **fixed)), 0)
    images = draw_images(draw, areas=[2000]).requires_grad_()
    precision = draw(st.sampled_from(sorted(PRECISIONS)))
    layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]

    def gradients(backend, precision):
        dtype, autocast = PRECISIONS[precision]
        own = with_backend(model, backend).to(dtype)
        with torch.autocast('cpu', autocast, enabled=autocast is not None):
            levels = own(layout(images.to(dtype)))
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (level * torch.randn(level.shape, generator=generator)).sum()
            for level in levels
        )
        leaves = [images, *own.parameters()]
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    ours = gradients(backend, precision)
    assert all(x.isfinite().all() for x in ours if x is not None)
    if precision == 'float64':
        exact = gradients('reference', precision)
        for mine, true in zip(ours, exact, strict=True):
            assert (mine is None) == (true is None)
            if true is not None:
                # Keys cancel in the gradients of their biases.
                limit = 1e-9 * (true.norm().item() + 1)
                assert distance(mine, true) <= limit
