# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Builds the modules to export, which map pictures to tensors.

A picture is (B, 3, H, W) in float32 from 0 to 255, as OpenCV reads it (BGR).
The modules contain the normalisation of the model's data preprocessor, but not
its resizing; detectors also contain its padding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import UserError
from .detectors import detector

#: Names of the parts of a model that can be exported.
PARTS = ('whole', 'backbone', 'neck')


class Deployable(NamedTuple):
    """A module to export.

    Attributes:
        module: Maps a picture (B, 3, H, W) to one or more tensors.
        task: ``'classification'``, ``'segmentation'``, ``'detection'`` or
            ``'features'``.
        outputs: Names of the outputs.
        crop: (H, W) of the pictures if the module accepts only one size.
        stride: Distance between such crops in a larger picture.
        reference: Computes what a file is compared with, if not `module`.
        notes: More metadata for programs that run a file.
    """

    module: nn.Module
    task: str
    outputs: tuple[str, ...]
    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    reference: Callable[[Tensor], Sequence[Tensor]] | None = None
    notes: dict[str, str] | None = None


def part_of(model: nn.Module, part: str = 'whole') -> Deployable:
    """Returns the part of a model to export, in eval mode.

    Args:
        model: A model of mmpretrain, mmseg or mmdet.
        part: One of ``PARTS``.

    Raises:
        UserError: The model has no such part, or it cannot be exported.
    """
    if part not in PARTS:
        raise UserError(
            f'--part must be one of {", ".join(PARTS)}; got {part}.'
        )
    _without_synchronised_norms(model)
    _with_exportable_pools(model)
    model.eval()
    if part != 'whole':
        return _features(model, part)
    if hasattr(model, 'decode_head'):
        return _segmentor(model)
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        return _detector(model)
    if hasattr(model, 'head') and hasattr(model, 'extract_feat'):
        module = _Whole(model, lambda x: model.head(model.extract_feat(x)))
        return Deployable(module, 'classification', ('logits',))
    raise UserError(
        f'--part whole takes a classifier, a segmentor or a detector; '
        f'{type(model).__name__} is none of them, take --part backbone.'
    )


class _Whole(nn.Module):
    """Normalises a picture, then calls a function of the model."""

    def __init__(self, model: nn.Module, run: Any) -> None:
        super().__init__()
        self.model = model
        self.run = run
        preprocessor = getattr(model, 'data_preprocessor', None)
        mean = getattr(preprocessor, 'mean', None)
        std = getattr(preprocessor, 'std', None)
        self.flips = any(
            getattr(preprocessor, name, False)
            for name in ('_channel_conversion', 'channel_conversion', 'to_rgb')
        )
        shape = 1, -1, 1, 1
        zero, one = torch.zeros(1), torch.ones(1)
        mean = zero if mean is None else mean.detach().float().cpu()
        std = one if std is None else std.detach().float().cpu()
        self.register_buffer('mean', mean.reshape(shape))
        self.register_buffer('std', std.reshape(shape))
        self.eval()  # else exporters restore the training mode

    def forward(self, image: Tensor) -> Any:
        """Maps (B, 3, H, W), BGR from 0 to 255, to the part's outputs."""
        if self.flips:
            image = torch.cat(image.split(1, dim=1)[::-1], dim=1)
        return self.run((image - self.mean) / self.std)


def _features(model: nn.Module, part: str) -> Deployable:
    backbone = getattr(model, 'backbone', None)
    if backbone is None or part == 'neck' and not hasattr(model, 'neck'):
        raise UserError(
            f'--part {part} needs a model with a {part}; '
            f'{type(model).__name__} has none.'
        )

    def run(x: Tensor) -> tuple[Tensor, ...]:
        maps = backbone(x) if part == 'backbone' else model.extract_feat(x)
        return tuple(maps) if isinstance(maps, list | tuple) else (maps,)

    module = _Whole(model, run)
    with torch.no_grad():
        number = len(module(torch.zeros(1, 3, 64, 64)))
    names = tuple(f'feat{i}' for i in range(number))
    return Deployable(module, 'features', names)


def _segmentor(model: nn.Module) -> Deployable:
    if not hasattr(model, '_forward'):
        raise UserError(
            f'--part whole supports segmentors with an encoder and a decoder; '
            f'{type(model).__name__} has another structure, so use --part '
            f'backbone.'
        )

    def run(x: Tensor) -> Tensor:
        return F.interpolate(
            model._forward(x),
            size=x.shape[2:],
            mode='bilinear',
            align_corners=model.align_corners,
        )

    crop = stride = None
    if model.test_cfg.get('mode') == 'slide':
        crop = tuple(map(int, model.test_cfg['crop_size']))
        stride = tuple(map(int, model.test_cfg['stride']))
    module = _Whole(model, run)
    return Deployable(module, 'segmentation', ('logits',), crop, stride)


def _detector(model: nn.Module) -> Deployable:
    run, reference, outputs, notes = detector(model)
    return Deployable(
        _Whole(model, run),
        'detection',
        outputs,
        reference=reference,
        notes=notes,
    )


class _AdaptivePool(nn.Module):
    """Computes ``nn.AdaptiveAvgPool2d`` as two matrix products.

    Exporters support products at any size.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, h, w)."""
        rows, columns = (
            self._means(to, n, x)
            for to, n in zip(self.size, x.shape[2:], strict=True)
        )
        return rows @ x @ columns.T

    def _means(self, to: int, length: int, x: Tensor) -> Tensor:
        """Returns the weight of each of `length` positions in each mean."""
        i = torch.arange(to, device=x.device)[:, None]
        start, stop = i * length // to, ((i + 1) * length + to - 1) // to
        place = torch.arange(length, device=x.device)
        inside = (place >= start) & (place < stop)
        return inside.to(x.dtype) / (stop - start).to(x.dtype)


def _with_exportable_pools(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.AdaptiveAvgPool2d:
                size = layer.output_size
                pair = size if isinstance(size, list | tuple) else (size,) * 2
                if None not in pair and tuple(pair) != (1, 1):
                    setattr(module, name, _AdaptivePool(tuple(pair)))


def _without_synchronised_norms(model: nn.Module) -> None:
    from mmengine.model import revert_sync_batchnorm

    revert_sync_batchnorm(model)
