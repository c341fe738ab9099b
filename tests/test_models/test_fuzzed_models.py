# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whole backbones on images of any size, type and memory layout.

The reference backend in float64 is what all others are measured against; in
turn test_fuzzed_attention.py measures it against the oracle.
"""

import copy

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from mmdat.models import DAT

pytestmark = pytest.mark.fuzz
LETTERS = 'LSNDPXEQ'
BIASES = ['table', 'fixed', 'depthwise_conv', 'log_continuous', 'none']
STRIDES = (4, 8, 16, 32)
# Precision: type of the parameters, and that of autocast.
PRECISIONS = {
    'float64': (torch.float64, None),
    'float32': (torch.float32, None),
    'bfloat16 autocast': (torch.float32, torch.bfloat16),
    'float16 autocast': (torch.float32, torch.float16),
}
# Pixels of an image. In the longer run one may be as large as can be.
AREAS = [2000] * 24 + [20_000] * 8
if settings.default.max_examples > 100:
    AREAS += [100_000] * 3 + [490_000]


@st.composite
def sizes(draw):
    """Any height and width from 1 to 700."""
    area = draw(st.sampled_from(AREAS))
    one = draw(st.integers(1, 60) | st.integers(1, 700))
    other = draw(st.integers(1, max(min(700, area // one), 1)))
    return (one, other) if draw(st.booleans()) else (other, one)


@st.composite
def architectures(draw, letters=None, **kwargs):
    """Settings of a backbone with one block of some kind in each stage."""
    kinds = st.sampled_from(letters or LETTERS)
    heads = [draw(st.sampled_from([1, 2])) for _ in range(4)]
    kwargs.setdefault('position_bias', draw(st.sampled_from(BIASES)))
    return dict(
        arch=dict(
            family=draw(st.sampled_from(['dat', 'dat_pp'])),
            embed_dims=[draw(st.sampled_from([16, 24, 32])) for _ in heads],
            depths=1,
            num_heads=heads,
            attentions=[draw(kinds) for _ in heads],
            mlp_ratio=2,
        ),
        img_size=(draw(st.integers(1, 90)), draw(st.integers(1, 90))),
        window_size=draw(st.sampled_from([3, 5, 7])),
        neighborhood_size=draw(st.sampled_from([1, 3, 5, 7])),
        offset_groups=[draw(st.sampled_from([1, n])) for n in heads],
        offset_range=draw(st.sampled_from([-1, 0, 2, 5.5])),
        use_offsets=draw(st.booleans()) or draw(st.booleans()),
        **kwargs,
    )


def build(kwargs, seed, spread=1.0):
    """A model whose every parameter matters, in float64."""
    generator = torch.Generator().manual_seed(seed)
    model = DAT(**kwargs).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        own = 0.5 if parameter.ndim == 1 or 'table' in name else 0
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.data += noise * (own or spread * 0.5 / fan_in**0.5)
    return model.double()


LAYOUTS = {
    'contiguous': lambda x: x,
    'channels last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.mT.contiguous().mT,
    'channels in the middle': lambda x: (
        x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    ),
    'cut out of a larger one': lambda x: torch.nn.functional.pad(
        x, (3, 2, 1, 4)
    )[..., 1:-4, 3:-2],
    'every other one': lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


def with_backend(model, backend):
    """A copy that insists on a backend."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, 'backend'):
            module.backend = backend
    return model


def forward(model, images, precision):
    """Outputs in this precision, as float64."""
    dtype, autocast = PRECISIONS[precision]
    model = copy.deepcopy(model).to(dtype)
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        levels = model(images.to(dtype))
    return [level.double() for level in levels]


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


def draw_images(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    height, width = draw(sizes())
    batch = draw(st.integers(1, 4))
    if height * width * batch > 500_000:
        batch = 1
    return torch.randn(
        *(batch, 3, height, width), generator=generator, dtype=torch.float64
    )


def compare(draw, kwargs, backend, precision=None):
    images = draw_images(draw)
    precision = precision or draw(st.sampled_from(sorted(PRECISIONS)))
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    event(f'{precision}')
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
