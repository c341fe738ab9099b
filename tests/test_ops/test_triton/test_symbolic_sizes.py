# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What compilers are told of the kernels' results, for sizes not yet known."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import symbolic_shapes
from versions import needs_torch

from mmdat.ops.triton import deformable, layer_norm, neighborhood, sampling

pytestmark = needs_torch('2.5')


@pytest.fixture
def tensors():
    """Makes tensors of unknown sizes, equal where the numbers are."""
    mode = FakeTensorMode(shape_env=symbolic_shapes.ShapeEnv())

    def make(*shape, dtype=torch.float32):
        return mode.from_tensor(
            torch.empty(shape, dtype=dtype),
            symbolic_context=symbolic_shapes.StatelessSymbolicContext(
                dynamic_sizes=[symbolic_shapes.DimDynamic.DUCK] * len(shape)
            ),
        )

    with mode:
        yield make
    # Nothing was asked of the sizes, which would hold for some alone.
    assert not mode.shape_env.guards


def assert_like(got, wanted):
    """The same sizes, whatever they are, and types."""
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert str(a.shape) == str(b.shape)
        assert a.dtype == b.dtype


def test_deformable_attention(tensors):
    half = torch.bfloat16
    q = tensors(2, 6, 35, 12, dtype=half)
    k, v = (tensors(2, 6, 99, 12, dtype=half) for _ in range(2))
    table, points = tensors(6, 13, 17), tensors(2, 3, 9, 11, 2)
    inputs = q, k, v, table, tensors(5), tensors(7), points
    out, lse = deformable._attention.registered(*inputs, 0.5)
    assert_like([out, lse], [q, q[..., 0].float()])
    grads = deformable._attention_backward.registered(
        out, *inputs, out, lse, 0.5, True, True
    )
    assert_like(grads, [q, k, v, table, points])


def test_neighborhood_attention(tensors):
    q, k, v = (tensors(2, 9, 11, 3, 12, dtype=torch.half) for _ in range(3))
    table = tensors(3, 13, 13)
    out, lse = neighborhood._attention.registered(q, k, v, table, 7, 0.5)
    assert_like([out, lse], [q, q[..., 0].permute(0, 3, 1, 2).float()])
    grads = neighborhood._attention_backward.registered(
        out, q, k, v, table, out, lse, 7, 0.5, True
    )
    assert_like(grads, [q, k, v, table])


def test_sampling(tensors):
    x, points = tensors(2, 9, 11, 12, dtype=torch.half), tensors(2, 3, 5, 7, 2)
    out = sampling._sample.registered(x, points)
    assert_like([out], [tensors(2, 5, 7, 12, dtype=torch.half)])
    grads = sampling._sample_backward.registered(out, x, points, True, True)
    assert_like(grads, [x, points])


def test_layer_norm(tensors):
    x, weight, bias = tensors(2, 9, 11, 12), tensors(12), tensors(12)
    out, *moments = layer_norm._layer_norm.registered(
        x, weight, bias, 1e-5, torch.half
    )
    assert_like([out, *moments], [x.half(), x[..., :1], x[..., :1]])
    grads = layer_norm._layer_norm_backward.registered(
        out, x, weight, bias, *moments, True, True, True
    )
    assert_like(grads, [x, weight, bias])
