# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Writes a module in one format, and loads the written file."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.utils import digit_version
from torch import Tensor

from ...utils.errors import UserError
from .parts import Deployable

#: The first opset with all operators: GridSample needs 16, LayerNormalization
#: needs 17.
OPSET = 17
#: Range of sides for ``torch.export``. It specialises maps of one row, and the
#: last map of DAT has stride 32.
LEAST_SIDE, MOST_SIDE = 33, 8192
MOST_BATCH = 1024

Run = Callable[[Tensor], Sequence[Tensor]]


class Format(NamedTuple):
    """A format of files.

    Attributes:
        suffix: Suffix of its files.
        needs: Packages that write and load the files.
        write: Writes a file; takes the part, an example picture, the dynamic
            axes (any of 0, 2, 3), the path and the metadata.
        load: Loads a file; returns a function from pictures to outputs.
        least: Smallest side of a picture if sides are dynamic.
    """

    suffix: str
    needs: tuple[str, ...]
    write: Callable[..., None]
    load: Callable[[Path], Run]
    least: int = 1

    def check(self, name: str) -> None:
        """Raises UserError if a package is missing."""
        missing = [one for one in self.needs if find_spec(one) is None]
        if missing:
            raise UserError(
                f'--format {name} needs {" and ".join(missing)}; install '
                f'with pip install {" ".join(missing)}.'
            )


_AXES = {0: 'batch', 2: 'height', 3: 'width'}


def _write_onnx(
    part: Deployable,
    image: Tensor,
    dynamic: Sequence[int],
    path: Path,
    notes: dict[str, str],
) -> None:
    import onnx

    axes: dict[str, dict[int, str]] = {
        'image': {axis: _AXES[axis] for axis in dynamic}
    }
    for name in part.outputs:
        axes[name] = {0: 'batch'} if 0 in dynamic else {}
        if part.task == 'detection':
            axes[name] = {0: 'detections'}
        elif part.task == 'segmentation':
            axes[name] = dict(axes['image'])
        elif part.task == 'features':
            axes[name].update({a: f'{name}_{_AXES[a]}' for a in dynamic if a})
    traced = {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        traced['dynamo'] = False  # the tracing exporter keeps sizes dynamic
    with torch.no_grad(), _scaled_attention():
        torch.onnx.export(
            part.module,
            (image,),
            str(path),
            opset_version=OPSET,
            input_names=['image'],
            output_names=list(part.outputs),
            dynamic_axes=axes,
            **traced,
        )
    model = onnx.load(str(path))
    foreign = {n.domain for n in model.graph.node} - {'', 'ai.onnx'}
    if foreign:
        raise UserError(
            f'A file may contain only standard operators; this model needs '
            f'operators of {", ".join(sorted(foreign))}.'
        )
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, str(path))


@contextmanager
def _scaled_attention() -> Iterator[None]:
    """Lets older versions of PyTorch export attention with a scale.

    The exporter of 2.1 fails on a scale that is a number. Here the query is
    multiplied with it, in relation to the default scale.
    """
    if digit_version(torch.__version__) >= digit_version('2.8'):
        yield
        return
    from torch.onnx import symbolic_helper, symbolic_opset14

    name = 'aten::scaled_dot_product_attention'
    attention = symbolic_opset14.scaled_dot_product_attention

    def scaled(g: Any, query: Any, *rest: Any) -> Any:
        # key, value, mask, dropout, causal, scale and in newer versions more
        scale = symbolic_helper._maybe_get_const(rest[5], 'f')
        if isinstance(scale, float):
            usual = symbolic_opset14._attention_scale(g, query)
            number = g.op('Constant', value_t=torch.tensor(scale))
            query = g.op('Mul', query, g.op('Div', number, usual))
            rest = (*rest[:5], None, *rest[6:])
        return attention(g, query, *rest)

    torch.onnx.register_custom_op_symbolic(name, scaled, OPSET)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(name, OPSET)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider']
    )

    def run(image: Tensor) -> list[Tensor]:
        outputs = session.run(None, {'image': image.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run


def _program(part: Deployable, image: Tensor, dynamic: Sequence[int]) -> Any:
    limits = {
        0: (1, MOST_BATCH),
        2: (LEAST_SIDE, MOST_SIDE),
        3: (LEAST_SIDE, MOST_SIDE),
    }
    shapes = {
        axis: torch.export.Dim(
            _AXES[axis], min=limits[axis][0], max=limits[axis][1]
        )
        for axis in dynamic
    }
    with torch.no_grad():
        return torch.export.export(
            part.module, (image,), dynamic_shapes=(shapes,)
        )


def _write_program(
    part: Deployable,
    image: Tensor,
    dynamic: Sequence[int],
    path: Path,
    notes: dict[str, str],
) -> None:
    program = _program(part, image, dynamic)
    torch.export.save(program, str(path), extra_files={'notes': str(notes)})


def _load_program(path: Path) -> Run:
    return _listed(torch.export.load(str(path)).module())


def _write_compiled(
    part: Deployable,
    image: Tensor,
    dynamic: Sequence[int],
    path: Path,
    notes: dict[str, str],
) -> None:
    program = _program(part, image, dynamic)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _load_compiled(path: Path) -> Run:
    return _listed(torch._inductor.aoti_load_package(str(path)))


def _listed(run: Callable) -> Run:
    def listed(image: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs = run(image)
        return [outputs] if isinstance(outputs, Tensor) else outputs

    return listed


#: The formats, by the names of the command line.
FORMATS = {
    'onnx': Format('.onnx', ('onnx', 'onnxruntime'), _write_onnx, _load_onnx),
    'torch-export': Format(
        '.pt2', (), _write_program, _load_program, LEAST_SIDE
    ),
    'aoti': Format('.pt2', (), _write_compiled, _load_compiled, LEAST_SIDE),
}


def write_quietly(form: Format, *args: Any) -> None:
    """Writes a file without the exporters' routine warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        form.write(*args)
