# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Times a backbone on this CPU: PyTorch, torch.compile, ONNX, OpenVINO.

The weights are random, because they do not change the time. int8 is the
dynamic quantisation of onnxruntime, applied to the matrix products.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from mmdat.engine.deployment import export
from mmdat.models import DAT
from mmdat.utils.errors import UserError, one_sentence_errors


class Host(torch.nn.Module):
    """A model with a backbone, as the exporter expects it."""

    def __init__(self, backbone: DAT) -> None:
        super().__init__()
        self.backbone = backbone


def milliseconds(run: Callable, image: torch.Tensor, repeats: int) -> float:
    """Returns the median time of `repeats` runs after two warm-up runs."""
    times = []
    for number in range(repeats + 2):
        start = time.perf_counter()
        run(image)
        if number > 1:
            times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def onnx_session(path: Path, threads: int) -> Callable:
    """Returns a function that runs an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )
    return lambda image: session.run(None, {'image': image.numpy()})


def ways(
    backbone: DAT, shape: tuple[int, int], threads: int, folder: Path
) -> Iterator[tuple[str, Callable]]:
    """Yields name and function of each way to run the backbone."""
    yield 'PyTorch', backbone
    path = folder / 'model.onnx'
    export(Host(backbone), path, part='backbone', shape=shape)
    yield 'onnxruntime', onnx_session(path, threads)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = folder / 'int8.onnx'
    quantize_dynamic(
        path,
        small,
        op_types_to_quantize=['MatMul'],
        weight_type=QuantType.QInt8,
    )
    yield 'onnxruntime, int8', onnx_session(small, threads)
    if find_spec('openvino'):
        import openvino

        compiled = openvino.compile_model(str(path), 'CPU')
        yield 'OpenVINO', lambda image: list(compiled(image.numpy()).values())
    # Last, since it takes minutes.
    yield 'torch.compile', torch.compile(backbone, dynamic=False)


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('arch', choices=list(DAT.arch_zoo))
    parser.add_argument('--shape', type=int, nargs=2, default=[224, 224])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=10)
    args = parser.parse_args()
    for package in ('onnx', 'onnxruntime'):
        if not find_spec(package):
            raise UserError(
                f'The command needs {package}; install it with pip install '
                f'{package}.'
            )
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    backbone = DAT(args.arch).eval()
    image = torch.rand(1, 3, *args.shape)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        wanted = backbone(image)
        for name, run in ways(
            backbone, tuple(args.shape), args.threads, Path(folder)
        ):
            apart = max(
                (torch.as_tensor(got) - right).norm().item()
                / right.norm().item()
                for got, right in zip(run(image), wanted, strict=True)
            )
            took = milliseconds(run, image, args.repeats)
            print(f'{name}: {took:.0f} ms, {apart:.1g} apart', flush=True)
    print(f'load average of the machine: {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
    with one_sentence_errors('latency'):
        main()
