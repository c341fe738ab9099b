# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Grad-CAM: the places that raise the score of a class.

Of a layer's activations A and the score y of a class it is
relu(sum_c mean(dy / dA_c) A_c), the mean over all places (Selvaraju et al.,
arXiv 1610.02391, eq. 1 and 2). Layers inside DAT have their channels last, (B,
H, W, C) or (B, H * W, C). Tools for convolutional networks read them as (B, C,
H, W) without a warning.
"""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..utils.errors import UserError
from .drawing import show_image
from .findings import class_names
from .frames import MapGrid, map_grids
from .legends import add_colour_bar
from .picture import Picture
from .recorder import find_backbone

COLOURS = 'inferno'
INCHES = 4.5


@dataclass(frozen=True)
class Cam:
    """How much each place of a map raises the score of a class.

    Attributes:
        values: (H, W), from 0 to 1.
        extent: Edges (left, right, bottom, top) of the map on the picture.
        target: Number of the class.
        name: Its name.
        layer: Name of the layer.
    """

    values: np.ndarray
    extent: tuple[float, float, float, float]
    target: int
    name: str
    layer: str


class _Watch:
    """Keeps what a layer gives, as (B, H, W, C) and linked to what follows."""

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        self.backbone = find_backbone(model)
        modules = dict(model.named_modules())
        own = next(n for n, m in modules.items() if m is self.backbone)
        self.name = layer or own
        if self.name not in modules:
            raise UserError(
                f'The model has no layer {layer}; a block is called '
                f'{own}.stages.3.blocks.0 and its norms norm1 and norm2.'
            )
        self.module = modules[self.name]
        inside = self.name.startswith(f'{own}.')
        self.channels_last = inside
        parts = self.name.removeprefix(f'{own}.').split('.')
        in_stage = inside and parts[0] == 'stages' and len(parts) > 1
        self.stage = int(parts[1]) if in_stage else None
        self.map_size: tuple[int, int] | None = None
        self.activation: Tensor | None = None
        self._handles = [self.module.register_forward_hook(self._keep)]
        if self.stage is not None:
            self._handles.append(
                self.backbone.stages[self.stage].register_forward_pre_hook(
                    self._keep_size
                )
            )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_size(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.map_size = tuple(args[0].shape[1:3])

    def _keep(self, module: nn.Module, _: object, out: object) -> None:
        if module is self.backbone:
            self.stage = self.backbone.out_indices[-1]
        self.activation = out[-1] if isinstance(out, list | tuple) else out

    def on_map(self, values: Tensor) -> Tensor:
        """What has the layer's shape as (H, W, C)."""
        if values.ndim == 3 and self.map_size is not None:
            values = values.unflatten(1, self.map_size)
        if values.ndim != 4 or len(values) != 1:
            raise UserError(
                f'Grad-CAM needs a layer that gives a map; {self.name} gives '
                f'{tuple(values.shape)}.'
            )
        values = values[0]
        return values if self.channels_last else values.permute(1, 2, 0)


def grad_cam(
    model: nn.Module,
    picture: Picture,
    target: int | str | None = None,
    layer: str | None = None,
) -> Cam:
    """Computes a Grad-CAM of a classifier, segmentor or detector.

    The score of a class is its logit in a classifier, the mean of its logits
    over the pixels of that class in a segmentor, and the sum of the scores of
    its objects in a detector.

    Args:
        model: As [`load_model`][] makes it.
        picture: The picture.
        target: Number or name of the class; None for the most likely class,
            the class of the largest area, or that of the most certain object.
        layer: Name of the layer, as in ``model.named_modules()``; None for
            the last output of the backbone.

    Raises:
        UserError: The class or the layer does not exist.
    """
    names = class_names(model.cfg)
    if isinstance(target, str):
        if target.isdecimal() and target not in names:
            target = int(target)
        elif target in names:
            target = names.index(target)
        else:
            raise UserError(
                f'There is no class {target}; classes are '
                f'{", ".join(names) or "numbers"}.'
            )
    watch = _Watch(model, layer)
    try:
        with torch.enable_grad():
            score, target = _score(model, picture, target)
            if watch.activation is None:
                raise UserError(
                    f'{watch.name} did not run; choose another layer.'
                )
            try:
                (slope,) = torch.autograd.grad(score, watch.activation)
            except RuntimeError as error:
                raise UserError(
                    f'The score of class {target} does not depend on '
                    f'{watch.name}; choose a layer before the heads.'
                ) from error
    finally:
        watch.close()
    activation, slope = (
        watch.on_map(one.detach().float()) for one in (watch.activation, slope)
    )
    cam = (activation * slope.mean(dim=(0, 1))).sum(dim=-1).relu()
    return Cam(
        (cam / cam.max().clamp(min=1e-12)).cpu().numpy(),
        _extent(watch, picture, cam.shape),
        target,
        names[target] if target < len(names) else str(target),
        watch.name,
    )


def _score(
    model: nn.Module, picture: Picture, target: int | None
) -> tuple[Tensor, int]:
    scope = model.cfg.get('default_scope')
    samples = deepcopy(list(picture.samples))
    # A path back even if all parameters are frozen.
    inputs = picture.inputs.clone().requires_grad_()
    if scope == 'mmdet':
        found = model(inputs, samples, mode='predict')[0]
        found = found.pred_instances
        if target is None and len(found):
            target = int(found.labels[found.scores.argmax()])
        chosen = found.scores[
            found.labels == (-1 if target is None else target)
        ]
        if not len(chosen):
            raise UserError(
                f'The detector found no object of class {target}, so there is '
                f'no score to explain; choose another target.'
                if target is not None
                else 'The detector found no object, so there is no score to '
                'explain.'
            )
        return chosen.sum(), target
    logits = model(inputs, samples, mode='tensor')[0]
    if target is not None and not 0 <= target < len(logits):
        raise UserError(
            f'A class must be in 0 to {len(logits) - 1}; got {target}.'
        )
    if logits.ndim == 1:
        target = int(logits.argmax()) if target is None else target
        return logits[target], target
    likeliest = logits.argmax(dim=0)
    if target is None:
        target = int(likeliest.flatten().bincount().argmax())
    where = likeliest == target
    if not where.any():
        raise UserError(
            f'No pixel has class {target} as its most likely one, so there is '
            f'no score to explain; choose another target.'
        )
    return logits[target][where].mean(), target


def _extent(
    watch: _Watch, picture: Picture, map_size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Edges (left, right, bottom, top) of a map on the picture."""
    height = picture.inputs.shape[2]
    stride = -(-height // map_size[0])
    grid = MapGrid(stride, (stride - 1) / 2)
    if watch.stage is not None:
        grid = map_grids(watch.backbone)[watch.stage]
    ends = grid.centres(map_size)[[0, -1], [0, -1]]
    ends = ends + ends.new_tensor([[-0.5], [0.5]]) * grid.stride
    (left, top), (right, bottom) = picture.frame.to_picture(ends).tolist()
    return left, right, bottom, top


def cam_figure(image: np.ndarray, cam: Cam, title: str = '') -> Figure:
    """A Grad-CAM over its picture.

    Args:
        image: The picture (H, W, 3), RGB, uint8.
        cam: The Grad-CAM to overlay.
        title: Title of the figure, such as the source of the weights.
    """
    shape = image.shape[0] / image.shape[1]
    figure = Figure(
        figsize=(2 * INCHES + 0.9, INCHES * shape + 0.6), layout='constrained'
    )
    FigureCanvasAgg(figure)
    left, right = axes = figure.subplots(1, 2)
    show_image(left, image, brightness=1)
    show_image(right, image, brightness=0.8)
    # Maps may end before the picture does: what is at their edge goes on.
    values = np.pad(cam.values, 1, 'edge')
    x1, x2, y2, y1 = cam.extent
    wide = (x2 - x1) / cam.values.shape[1]
    high = (y2 - y1) / cam.values.shape[0]
    shown = right.imshow(
        values,
        extent=(x1 - wide, x2 + wide, y2 + high, y1 - high),
        cmap=COLOURS,
        alpha=0.55,
        vmin=0,
        vmax=1,
        interpolation='bilinear',
    )
    right.set_xlim(left.get_xlim())
    right.set_ylim(left.get_ylim())
    left.set_title('picture', fontsize=9, pad=3)
    right.set_title(f'class {cam.name}, {cam.layer}', fontsize=9, pad=3)
    add_colour_bar(figure, axes, shown, 'Grad-CAM, 1 at its largest')
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
