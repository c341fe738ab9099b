# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""From positions on a feature map to pixels of the picture on disk.

A position takes two steps, each an affine map per axis: from a stage's map to
the network's input (``MapGrid``), and from the input, which was resized,
cropped, flipped and padded, to the original picture (``Frame``). Pixel
centres have whole coordinates, (0, 0) is the top left one, and positions are
(x, y).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import DAT


@dataclass(frozen=True)
class MapGrid:
    """Where the pixels of a stage's map lie in the input.

    Attributes:
        stride: Input pixels from one map pixel to the next.
        start: Input coordinate of the centre of the first map pixel, on
            either axis.
    """

    stride: int
    start: float

    def to_input(self, points_yx: Tensor, map_size: Sequence[int]) -> Tensor:
        """Input pixels (..., 2) as (x, y) of normalised positions (..., 2).

        -1 and 1 are the centres of the first and last map pixel, as
        everywhere in ``mmdat.ops``.

        Args:
            points_yx: Normalised positions, (y, x).
            map_size: (H, W) of the map.
        """
        points_xy = points_yx.double().flip(-1)
        last_xy = points_xy.new_tensor([map_size[1] - 1, map_size[0] - 1])
        return (points_xy + 1) / 2 * last_xy * self.stride + self.start

    def nearest(self, points_xy: Tensor, map_size: Sequence[int]) -> Tensor:
        """Map pixels (..., 2) as whole (row, column) next to input pixels."""
        cells_yx = (points_xy.flip(-1) - self.start) / self.stride
        last_yx = cells_yx.new_tensor([n - 1 for n in map_size])
        return cells_yx.round().clamp(min=0).minimum(last_yx).long()

    def centres(self, map_size: Sequence[int]) -> Tensor:
        """Input pixels (H, W, 2) as (x, y) of all map pixels."""
        y, x = (
            torch.arange(n, dtype=torch.float64) * self.stride + self.start
            for n in map_size
        )
        return torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1)


def map_grids(backbone: DAT) -> tuple[MapGrid, ...]:
    """The grids of the four stages.

    A map pixel is placed at the centre of the input pixels from which it is
    computed, by the kernels, strides and padding of the embedding and the
    down-projections. In DAT, whose patches do not overlap, map pixel i of
    stride s has its centre at (i + 0.5) s - 0.5. In DAT++, whose 3x3
    convolutions are padded by 1, it is at i s.
    """
    stride, start, grids = 1, 0.0, []
    for part in (backbone.patch_embed, *backbone.downsamples):
        for conv in part.modules():
            if isinstance(conv, nn.Conv2d):
                centre = (conv.kernel_size[0] - 1) / 2 - conv.padding[0]
                start += centre * stride
                stride *= conv.stride[0]
        grids.append(MapGrid(stride, start))
    return tuple(grids)


@dataclass(frozen=True)
class Frame:
    """Where the pixels of a network's input lie in the original picture.

    ``input = scale * picture + shift`` on each axis.

    Attributes:
        size: (H, W) of the original picture.
        scale_xy: Input pixels per pixel of the picture; negative where the
            picture was flipped.
        shift_xy: Input coordinates of the picture's first pixel.
    """

    size: tuple[int, int]
    scale_xy: tuple[float, float] = (1.0, 1.0)
    shift_xy: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> 'Frame':
        """Makes a frame from the metainfo of mmdet, mmseg or mmpretrain.

        Args:
            meta: The ``metainfo`` of a data sample: ``ori_shape``, and if
                they differ from doing nothing ``img_shape``,
                ``scale_factor``, ``flip`` and ``flip_direction``. The assumed
                order is resize, crop at the centre, flip, and padding at the
                right and bottom, as in all test pipelines. The packages do not
                record random crops of training.

        Raises:
            ValueError: There is no ``ori_shape``.
        """
        if meta.get('ori_shape') is None:
            raise ValueError(
                f'To find the pixels of the original picture the meta '
                f'information must have ori_shape; got '
                f'{", ".join(sorted(meta)) or "nothing"}. Add it to meta_keys '
                f'of the pipeline.'
            )
        size = tuple(int(n) for n in meta['ori_shape'][:2])
        shown = meta.get('img_shape') or size
        factors = meta.get('scale_factor')
        if factors is None:
            factors = shown[1] / size[1], shown[0] / size[0]
        directions = (
            str(meta.get('flip_direction')) if meta.get('flip') else ''
        )
        axes = [
            _axis(size[1], shown[1], float(factors[0])),
            _axis(size[0], shown[0], float(factors[1])),
        ]
        for i, names in enumerate(
            (('horizontal', 'diagonal'), ('vertical', 'diagonal'))
        ):
            if directions in names:
                scale, shift, length = axes[i]
                axes[i] = -scale, length - 1 - shift, length
        return cls(size, (axes[0][0], axes[1][0]), (axes[0][1], axes[1][1]))

    def to_picture(self, points_xy: Tensor) -> Tensor:
        """Pixels of the picture (..., 2) at pixels of the input."""
        points_xy = points_xy.double()
        shift, scale = (
            points_xy.new_tensor(v) for v in (self.shift_xy, self.scale_xy)
        )
        return (points_xy - shift) / scale

    def to_input(self, points_xy: Tensor) -> Tensor:
        """Pixels of the input (..., 2) at pixels of the picture."""
        points_xy = points_xy.double()
        shift, scale = (
            points_xy.new_tensor(v) for v in (self.shift_xy, self.scale_xy)
        )
        return points_xy * scale + shift

    def seen(self, input_size: Sequence[int]) -> tuple[float, ...]:
        """Edges (left, top, right, bottom) of the visible part of the picture.

        Args:
            input_size: (H, W) of the input, padding included.
        """
        ends = torch.tensor(
            [[-0.5, -0.5], [input_size[1] - 0.5, input_size[0] - 0.5]]
        )
        ends = self.to_picture(ends).sort(dim=0)[0]
        last = ends.new_tensor([self.size[1], self.size[0]]) - 0.5
        return tuple(ends.clamp(min=-0.5).minimum(last).flatten().tolist())

    def contains(self, points_xy: Tensor) -> Tensor:
        """Which pixels of the picture (..., 2) lie on it, edges included."""
        last_xy = points_xy.new_tensor([self.size[1], self.size[0]]) - 0.5
        return ((points_xy >= -0.5) & (points_xy <= last_xy)).all(dim=-1)


def _axis(
    length: int, shown: int, factor: float
) -> tuple[float, float, float]:
    """Scale, shift and length of the content of the input on one axis.

    Args:
        length: Pixels of the original.
        shown: Pixels after resizing and cropping, or padding.
        factor: Pixels after resizing per pixel of the original.
    """
    resized = round(length * factor)
    scale = resized / length
    # Pixels are areas: their outer edges, at -0.5, are what is stretched.
    shift = 0.5 * scale - 0.5 - round(max(resized - shown, 0) / 2)
    return scale, shift, min(resized, shown)
