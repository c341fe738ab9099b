# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Exports a part of a model and compares the file with PyTorch."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import UserError
from ...version import __version__
from .formats import FORMATS, OPSET, Run, write_quietly
from .parts import Deployable, part_of

#: Largest allowed difference, relative to the largest number of an output. It
#: allows for float32 sums in a different order.
TOLERANCE = 1e-4
#: The same for what detectors compute inside of boxes. A box that is moved by
#: a hundredth of a pixel contains other samples.
INSIDE_BOXES = dict.fromkeys(('scores', 'masks'), 1e-3)


class Exported(NamedTuple):
    """A file that was written and checked.

    Attributes:
        path: The file.
        task: See ``mmdat.engine.deployment.parts.Deployable``.
        checks: For each tested shape (B, 3, H, W), the largest difference
            from PyTorch and the largest number of the output.
        crop: The only (H, W) that the file accepts, or None for any.
    """

    path: Path
    task: str
    checks: dict[tuple[int, ...], tuple[float, float]]
    crop: tuple[int, int] | None


def export(
    model: nn.Module,
    path: Path,
    form: str = 'onnx',
    part: str = 'whole',
    shape: tuple[int, int] = (224, 224),
    fixed: bool = False,
    example: Tensor | None = None,
) -> Exported:
    """Writes a part of a model to a file that runs without OpenMMLab.

    A temporary file is written, run at three sizes and compared with the
    model. It is renamed to `path` only if all outputs agree.

    Args:
        model: The model, with its weights.
        path: The file to write.
        form: One of ``FORMATS``.
        part: One of ``PARTS``.
        shape: (H, W) of the example picture.
        fixed: Whether the file accepts only this size and one picture.
        example: A picture (3, H, W) to compare with, BGR from 0 to 255, which
            is resized; None for noise. In a detector it must show something
            that the detector finds.

    Raises:
        UserError: The model has no such part, the format does not work here,
            or the file does not agree with the model. No file is written then.
    """
    if form not in FORMATS:
        raise UserError(
            f'--format must be one of {", ".join(FORMATS)}; got {form}.'
        )
    FORMATS[form].check(form)
    if path.suffix != FORMATS[form].suffix:
        raise UserError(
            f'A file of --format {form} must end in {FORMATS[form].suffix}; '
            f'got {path.name}.'
        )
    if not path.parent.is_dir():
        raise UserError(f'The folder {path.parent} must exist; create it.')
    deployable = part_of(model, part)
    dynamic: tuple[int, ...] = () if fixed else (0, 2, 3)
    if deployable.task == 'detection':
        dynamic = dynamic[1:]
        if form != 'onnx':
            raise UserError(
                f'Whole detectors are exported with --format onnx, since the '
                f'number of detections depends on the picture; got {form}.'
            )
    if deployable.crop is not None:
        shape, dynamic = deployable.crop, dynamic[:1]
    least = FORMATS[form].least if 2 in dynamic else 1
    if min(shape) < least:
        raise UserError(
            f'--format {form} takes sides of at least {least} pixels unless '
            f'--fixed is given; got --shape {shape[0]} {shape[1]}.'
        )
    draft = path.with_name(f'.{path.stem}.draft{path.suffix}')
    try:
        checks = _write_and_check(
            deployable, draft, form, shape, dynamic, example
        )
        draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink()
    return Exported(path, deployable.task, checks, deployable.crop)


def _write_and_check(
    part: Deployable,
    draft: Path,
    form: str,
    shape: tuple[int, int],
    dynamic: Sequence[int],
    example: Tensor | None,
) -> dict[tuple[int, ...], tuple[float, float]]:
    image = picture(2 if 0 in dynamic else 1, *shape)
    try:
        write_quietly(
            FORMATS[form], part, image, dynamic, draft, _notes(part, dynamic)
        )
        run = FORMATS[form].load(draft)
    except UserError:
        raise
    except Exception as error:  # exporters raise any exception
        raise UserError(
            f'--format {form} cannot export this model: {_first_line(error)}; '
            f'try --part backbone, --fixed or another format.'
        ) from error
    return {
        sizes: _compare(part, run, form, _tried(example, sizes))
        for sizes in trial_shapes(image, dynamic, FORMATS[form].least)
    }


def _notes(part: Deployable, dynamic: Sequence[int]) -> dict[str, str]:
    """Returns the metadata of the file, for programs that run it."""
    return dict(
        task=part.task,
        image='BGR, 0 to 255, not normalised',
        opset=str(OPSET),
        mmdat=__version__,
        **({'crop': json.dumps(part.crop)} if part.crop else {}),
        **({'stride': json.dumps(part.stride)} if part.stride else {}),
        **(part.notes or {}),
        dynamic=json.dumps(list(dynamic)),
    )


def picture(batch: int, height: int, width: int) -> Tensor:
    """Returns a picture of noise to test a model with, always the same."""
    generator = torch.Generator().manual_seed(batch + height + width)
    return 255 * torch.rand(batch, 3, height, width, generator=generator)


def trial_shapes(
    image: Tensor, dynamic: Sequence[int], least: int
) -> list[tuple[int, ...]]:
    """Returns the shapes (B, 3, H, W) to test: three if sizes are dynamic."""
    batch, channels, height, width = image.shape
    shapes = [(batch, channels, height, width)]
    if 2 in dynamic:
        smaller = max(height * 3 // 4, least) | 1, width + 13 | 1
        larger = height + 38, max(width - 27, least)
        more = 3 if 0 in dynamic else batch
        return [*shapes, (1, channels, *smaller), (more, channels, *larger)]
    if 0 in dynamic:
        shapes += [(n, channels, height, width) for n in (1, 3)]
    return shapes


def _tried(example: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Returns the picture (B, 3, H, W) to compare with."""
    if example is None:
        return picture(shape[0], *shape[2:])
    resized = F.interpolate(
        example[None].float(), shape[2:], mode='bilinear', antialias=True
    )
    return resized.repeat(shape[0], 1, 1, 1)


def _compare(
    part: Deployable, run: Run, form: str, image: Tensor
) -> tuple[float, float]:
    """Compares file and model on a picture; raises UserError if they differ.

    Returns:
        The largest difference, and the largest number of the output.
    """
    with torch.no_grad():
        wanted = (part.reference or part.module)(image)
    wanted = [wanted] if isinstance(wanted, Tensor) else wanted
    name = ' x '.join(map(str, image.shape))
    try:
        outputs = run(image)
    except Exception as error:  # runtimes raise any exception
        raise UserError(
            f'The file of --format {form} does not run at {name}: '
            f'{_first_line(error)}; nothing was written, try --fixed.'
        ) from error
    if part.task == 'detection':
        outputs = _matched(outputs, wanted, name)
    worst, largest = 0.0, 0.0
    for output, got, right in zip(part.outputs, outputs, wanted, strict=True):
        if got.shape != right.shape:
            raise UserError(
                f'The file of --format {form} gives {tuple(got.shape)} at '
                f'{name} where PyTorch gives {tuple(right.shape)}; nothing '
                f'was written, try --fixed.'
            )
        apart = (got - right).abs().max().item()
        scale = right.abs().max().item()
        tolerance = INSIDE_BOXES.get(output, TOLERANCE)
        if not apart <= tolerance * max(scale, 1e-6):
            raise UserError(
                f'The file of --format {form} differs from PyTorch by '
                f'{apart:.2g} at {name}, where outputs are up to {scale:.2g}; '
                f'nothing was written, try --fixed.'
            )
        worst, largest = max(worst, apart), max(largest, scale)
    return worst, largest


def _matched(
    outputs: Sequence[Tensor], wanted: Sequence[Tensor], name: str
) -> list[Tensor]:
    """Returns detections in the order of those of PyTorch.

    Almost equal scores may be sorted differently. Each detection of PyTorch
    gets the nearest one of its class that is left.
    """
    boxes, scores, labels = outputs[:3]
    if len(wanted[0]) == 0:
        raise UserError(
            f'Detections are compared on pictures that show some, and PyTorch '
            f'finds none at {name}; nothing was written, give a picture with '
            f'objects, --picture FILE.'
        )
    if sorted(labels.tolist()) != sorted(wanted[2].tolist()):
        raise UserError(
            f'The file finds {len(labels)} objects at {name} where PyTorch '
            f'finds {len(wanted[2])}, or other classes; nothing was written, '
            f'try another --picture or --part neck.'
        )
    order: list[int] = []
    for box, score, label in zip(*wanted[:3], strict=True):
        apart = (boxes - box).abs().sum(1) + (scores - score).abs()
        apart[labels != label] = torch.inf
        apart[order] = torch.inf
        order.append(int(apart.argmin()))
    return [output[order] for output in outputs]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip('.')[:300]
