# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Exports the published architectures and compares each file with PyTorch.

For each architecture and exporter, a process of its own exports the backbone
with random weights and dynamic batch, height and width, loads the file in the
runtime and runs it at several sizes. It prints a row of a Markdown table with
the largest difference from PyTorch, relative to the largest number of a map.
The largest models need up to 6 GB of memory and tens of minutes.

``python tools/dev/check_exports.py dat_t --ways trace onnx``
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdat.engine.deployment.formats import LEAST_SIDE, OPSET
from mmdat.models import DAT

SHAPES = ((224, 224), (256, 320), (512, 512))
COLUMNS = ('architecture', 'exporter', 'opset')
AXES = {0: 'batch', 2: 'height', 3: 'width'}
Run = Callable[[Tensor], Sequence[Tensor]]


def backbone(arch: str) -> DAT:
    """A backbone with random weights, in position-bias tables too."""
    torch.manual_seed(0)
    model = DAT(arch).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if not parameter.any():
            parameter.normal_(0, 0.5)
    return model


def image(batch: int, height: int, width: int) -> Tensor:
    """Noise on a gradient, always the same."""
    generator = torch.Generator().manual_seed(height + width)
    noise = torch.rand(batch, 3, height, width, generator=generator)
    return noise + torch.linspace(0, 1, height)[:, None] - 0.5


def trace(model: DAT, path: Path) -> Run:
    """A TorchScript trace, checked by PyTorch, saved and loaded."""
    torch.jit.trace(model, image(1, *SHAPES[0])).save(str(path))
    return torch.jit.load(str(path))


def onnx(model: DAT, path: Path) -> Run:
    """The tracing ONNX exporter."""
    names = ['image', *(f'feat{i}' for i in range(4))]
    torch.onnx.export(
        model,
        (image(1, *SHAPES[0]),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=names[:1],
        output_names=names[1:],
        dynamic_axes=dict.fromkeys(names, AXES),
    )
    return in_onnxruntime(path)


def program_of(
    model: DAT, strict: bool = False
) -> torch.export.ExportedProgram:
    """A program of torch.export."""
    sides = dict(min=LEAST_SIDE, max=4096)
    axes = {
        0: torch.export.Dim('batch', min=1, max=64),
        2: torch.export.Dim('height', **sides),
        3: torch.export.Dim('width', **sides),
    }
    return torch.export.export(
        model, (image(2, 64, 96),), dynamic_shapes=(axes,), strict=strict
    )


def program(model: DAT, path: Path) -> Run:
    """torch.export, saved and loaded."""
    torch.export.save(program_of(model), str(path))
    return torch.export.load(str(path)).module()


def strict(model: DAT, path: Path) -> Run:
    """torch.export with ``strict=True``, saved and loaded."""
    torch.export.save(program_of(model, True), str(path))
    return torch.export.load(str(path)).module()


def dynamo(model: DAT, path: Path) -> Run:
    """The ONNX exporter that uses torch.export."""
    torch.onnx.export(
        program_of(model), (), str(path), dynamo=True, verbose=False
    )
    return in_onnxruntime(path)


def in_onnxruntime(path: Path) -> Run:
    """Runs an ONNX file on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )
    name = session.get_inputs()[0].name
    return lambda x: [
        torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})
    ]


WAYS = {
    'trace': (trace, 'a.pt'),
    'onnx': (onnx, 'a.onnx'),
    'torch-export': (program, 'a.pt2'),
    'strict': (strict, 'a.pt2'),
    'dynamo': (dynamo, 'a.onnx'),
}


def difference(run: Run, model: DAT, shape: tuple[int, int]) -> float:
    """The largest difference, relative to the largest number of a map."""
    images = image(1, *shape)
    return max(
        ((got - right).abs().max() / right.abs().max()).item()
        for got, right in zip(run(images), model(images), strict=True)
    )


def opset_of(path: Path) -> int | str:
    """The opset of an ONNX file, else a dash."""
    if path.suffix != '.onnx':
        return '-'
    import onnx

    return onnx.load(path, load_external_data=False).opset_import[0].version


def check(arch: str, way: str, shapes: Sequence[tuple[int, int]]) -> None:
    """Prints the row of one architecture and exporter."""
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    model = backbone(arch)
    export, name = WAYS[way]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / name
        start = time.perf_counter()
        run = export(model, path)
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        apart = [f'{difference(run, model, shape):.1g}' for shape in shapes]
        opset = opset_of(path)
    # Linux counts in KiB.
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print_row(
        (arch, way, opset, *apart, f'{seconds:.0f}')
        + (f'{size / 2**20:.0f}', f'{memory:.1f}')
    )


def print_row(cells: Sequence[object]) -> None:
    """Prints a row of a Markdown table."""
    print('|', ' | '.join(map(str, cells)), '|', flush=True)


def main() -> int:
    """Checks what is asked for; returns the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'archs', nargs='*', metavar='ARCH', help='default: all'
    )
    parser.add_argument(
        '--ways', nargs='+', choices=list(WAYS), default=['trace', 'onnx']
    )
    parser.add_argument(
        '--shapes',
        nargs='+',
        default=['x'.join(map(str, shape)) for shape in SHAPES],
        help='sizes to run at, such as 256x320',
    )
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    shapes = [tuple(map(int, shape.split('x'))) for shape in args.shapes]
    if args.here:
        check(args.archs[0], args.ways[0], shapes)
        return 0
    print_row((*COLUMNS, *args.shapes, 's', 'MB', 'GB of memory'))
    print_row(['---'] * (len(args.shapes) + 6))
    failures = 0
    for arch in args.archs or DAT.arch_zoo:
        for way in args.ways:
            failures += _alone(arch, way, args.shapes)
    return failures


def _alone(arch: str, way: str, shapes: Sequence[str]) -> bool:
    """Runs a check in a process of its own; returns whether it failed."""
    done = subprocess.run(
        [sys.executable, __file__, arch, '--here']
        + ['--ways', way, '--shapes', *shapes],
        capture_output=True,
        text=True,
        env={'OMP_NUM_THREADS': '1', **os.environ},
    )
    rows = [line for line in done.stdout.splitlines() if line[:1] == '|']
    print(*rows, sep='\n', end='\n' * bool(rows), flush=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ['']
        print_row((arch, way, f'failed ({done.returncode}): {last[0]}'))
    return done.returncode != 0


if __name__ == '__main__':
    sys.exit(main())
