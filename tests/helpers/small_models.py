# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Strategies for backbones of a few channels, and for their images."""

import copy

import torch
from hypothesis import settings
from hypothesis import strategies as st

from mmdat.models import DAT

LETTERS = 'LSNDPXEFQ'
# Name of a backend, and the attentions that have it.
BACKENDS = {'separable': 'D', 'sdpa': 'DLSN', None: LETTERS}
BIASES = ['table', 'fixed', 'depthwise_conv', 'log_continuous', 'none']
STRIDES = (4, 8, 16, 32)
# Precision: type of the parameters, and that of autocast.
PRECISIONS = {
    'float64': (torch.float64, None),
    'float32': (torch.float32, None),
    'bfloat16 autocast': (torch.float32, torch.bfloat16),
    'float16 autocast': (torch.float32, torch.float16),
}
# Whole models take longer than single ops.
fewer_cases = settings(max_examples=settings.default.max_examples // 2)
# Pixels of an image. In the longer run one may be as large as can be.
AREAS = [2000] * 24 + [20_000] * 8
if settings.default.max_examples > 100:
    AREAS += [100_000] * 2 + [490_000]


@st.composite
def sizes(draw, areas=AREAS):
    """Any height and width from 1 to 700."""
    area = draw(st.sampled_from(areas))
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
    generator = torch.manual_seed(seed)
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
