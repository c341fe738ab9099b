# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""ONNX files, and programs of torch.export, for any batch and size."""

import pytest
import torch

from mmdat.models import DAT

BIASES = ['table', 'none', 'log_continuous', 'fixed']
KINDS = {
    'dat': ['L', 'S', 'D', 'D'],
    'dat_pp': ['ND', 'PQ', 'EX', 'FD'],
}
# Sides that are no multiples of anything, and fewer pixels than a window has.
SHAPES = [(2, 48, 80), (1, 37, 50), (3, 64, 97), (1, 130, 96)]
AXES = {0: 'batch', 2: 'height', 3: 'width'}


def model(family, **kwargs):
    generator = torch.manual_seed(0)
    kinds = KINDS[family]
    made = DAT(
        arch=dict(
            embed_dims=[16] * 4,
            num_heads=2,
            mlp_ratio=1,
            depths=[len(stage) for stage in kinds],
            family=family,
            attentions=kinds,
        ),
        img_size=64,
        window_size=3,
        neighborhood_size=3,
        offset_range=2 if family == 'dat' else -1,
        offset_groups=[1, 1, 2, 2],
        **{'position_bias': BIASES, **kwargs},
    ).eval()
    for parameter in made.parameters():
        parameter.data.uniform_(-0.3, 0.3, generator=generator)
    return made


def check(run, made, shapes):
    for batch, *sides in shapes:
        images = torch.rand(batch, 3, *sides)
        with torch.no_grad():
            wanted = made(images)
        for got, right in zip(run(images), wanted, strict=True):
            torch.testing.assert_close(
                torch.as_tensor(got), right, atol=1e-5, rtol=1e-4
            )


def in_onnxruntime(path):
    runtime = pytest.importorskip('onnxruntime')
    session = runtime.InferenceSession(
        str(path), providers=['CPUExecutionProvider']
    )
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


@pytest.mark.parametrize('family', ['dat', 'dat_pp'])
@pytest.mark.filterwarnings('ignore')
def test_the_exporter_that_traces(family, tmp_path):
    onnx = pytest.importorskip('onnx')
    made = model(family)
    names = ['image', 'a', 'b', 'c', 'd']
    with torch.no_grad():
        torch.onnx.export(
            made,
            (torch.rand(2, 3, 48, 80),),
            str(tmp_path / 'a.onnx'),
            dynamo=False,
            opset_version=17,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes=dict.fromkeys(names, AXES),
        )
    graph = onnx.load(tmp_path / 'a.onnx').graph
    assert {node.domain for node in graph.node} == {''}
    kinds = {node.op_type for node in graph.node}
    assert 'GridSample' in kinds and 'Dropout' not in kinds
    check(in_onnxruntime(tmp_path / 'a.onnx'), made, SHAPES)


def program_of(made):
    sides = dict(min=33, max=4096)  # the last map has more than one row
    axes = {
        0: torch.export.Dim('batch', min=1, max=64),
        2: torch.export.Dim('height', **sides),
        3: torch.export.Dim('width', **sides),
    }
    with torch.no_grad():
        return torch.export.export(
            made, (torch.rand(2, 3, 48, 80),), dynamic_shapes=(axes,)
        )


@pytest.mark.slow
@pytest.mark.parametrize('family', ['dat', 'dat_pp'])
@pytest.mark.filterwarnings('ignore')
def test_programs(family):
    made = model(family)
    program = program_of(made)
    targets = [str(node.target) for node in program.graph.nodes]
    assert not any('mmdat' in target for target in targets)
    with torch.no_grad():
        check(program.module(), made, SHAPES)


@pytest.mark.long
@pytest.mark.parametrize('family', ['dat', 'dat_pp'])
@pytest.mark.filterwarnings('ignore')
def test_the_exporter_that_follows_symbols(family, tmp_path):
    pytest.importorskip('onnxscript')
    made = model(family)
    torch.onnx.export(
        program_of(made),
        (),
        str(tmp_path / 'a.onnx'),
        dynamo=True,
        verbose=False,
    )
    check(in_onnxruntime(tmp_path / 'a.onnx'), made, SHAPES)
