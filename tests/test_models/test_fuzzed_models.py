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
    forward,
    sizes,
    with_backend,
)

pytestmark = pytest.mark.fuzz


def distance(a, b):
    return (a - b).norm().item()


def assert_as_good_as_plain(ours, plain, exact, precision, backend):
    """Finite, and at most twice as far off as the reference backend."""
    dtype, autocast = PRECISIONS[precision]
    eps = torch.finfo(autocast or dtype).eps
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert mine.isfinite().all()
        # One rounding that plain PyTorch may be spared by luck.
        limit = 2 * distance(theirs, true) + eps * true.norm().item()
        if precision == 'float64':  # in which plain PyTorch is the truth
            limit = 1e-12 * true.norm().item()
        error = distance(mine, true)
        assert error <= limit, (backend, precision, error, limit)


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
    with torch.set_grad_enabled(draw(st.booleans())):
        exact = forward(plain, images, 'float64')
        theirs = forward(plain, images, precision)
        fast = with_backend(model, backend)
        images = LAYOUTS[layout](images)
        ours = forward(fast, images, precision)
    batch, _, height, width = images.shape
    event('sides from 32 on' if min(height, width) >= 32 else 'less')
    for stage, stride, level in zip(
        model.arch.stages, STRIDES, ours, strict=True
    ):
        sides = -(-height // stride), -(-width // stride)
        assert level.shape == (batch, stage.dim, *sides)
    assert_as_good_as_plain(ours, theirs, exact, precision, backend)


@given(st.data())
def test_chosen_backends(data):
    """Every kind of attention, as it runs if nothing is asked for."""
    compare(data.draw, data.draw(architectures()), None)


@given(st.data())
def test_tiled(data):
    compare(data.draw, data.draw(architectures('LSN')), 'tiled')


@given(st.data())
def test_chunked(data):
    compare(data.draw, data.draw(architectures('D')), 'chunked')


@given(st.data())
def test_separable(data):
    kwargs = data.draw(architectures('D', position_bias='table'))
    compare(data.draw, kwargs, 'separable')


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
