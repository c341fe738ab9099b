# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Saying what a checkpoint holds, from its names and shapes alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoints import released
from ..models.arch import ARCH_ZOO

# Entries that no optimiser trains: index tables and statistics of norms.
_NOT_LEARNT = re.compile(
    r'(^|\.)(relative_position_index|attn_mask|q_grid|reference'
    r'|running_mean|running_var|num_batches_tracked)$'
)

# What a task's models have beside the backbone, the telling name first.
_METHODS = [
    (r'(cls_head|head\.fc)\.', 'classification', None),
    (r'roi_head\.mask_head\.\d+\.', 'detection', 'Cascade Mask R-CNN'),
    (r'roi_head\.mask_head\.', 'detection', 'Mask R-CNN'),
    (r'roi_head\.bbox_head\.\d+\.', 'detection', 'Cascade R-CNN'),
    (r'roi_head\.bbox_head\.', 'detection', 'Faster R-CNN'),
    (r'bbox_head\.retina_', 'detection', 'RetinaNet'),
    (r'decode_head\.psp_modules\.', 'segmentation', 'UPerNet'),
    (r'decode_head\.scale_heads\.', 'segmentation', 'Semantic FPN'),
    (r'(bbox_head|roi_head|mask_head|rpn_head)\.', 'detection', None),
    (r'decode_head\.', 'segmentation', None),
]


# What the names of a family's architectures start with.
_STEMS = {'DAT': 'dat', 'DAT+': 'dat_p', 'DAT++': 'dat_pp'}

# The entry that tells the number of classes, and how many of its rows do not
# stand for one: the background.
_CLASSIFIERS = [
    (r'(cls_head|head\.fc)\.weight', 0),
    (r'roi_head\.bbox_head\.(0\.)?fc_cls\.weight', 1),
    (r'decode_head\.conv_seg\.weight', 0),
]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is; its ``str()`` is a phrase for messages.

    Attributes:
        family: ``'DAT'``, ``'DAT+'`` or ``'DAT++'``, None if the file holds
            none of them.
        variant: ``'T'``, ``'S'`` or ``'B'``, None if widths, depths and heads
            are those of no published model.
        img_size: Resolution that the position-bias tables were made for, in
            pixels; None if there are no such tables.
        task: ``'classification'``, ``'detection'`` or ``'segmentation'``,
            None for a backbone alone.
        method: Detector or segmentor, such as ``'Mask R-CNN'``; None where it
            is not one of those that were released.
        parameters: Learnable numbers, heads included.
        classes: Classes of the head, None without one that is known.
        embed_dims: Channels of the four stages.
        depths: Blocks of the four stages.
    """

    family: str | None
    variant: str | None
    img_size: int | None
    task: str | None
    method: str | None
    parameters: int
    embed_dims: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    classes: int | None = None

    @property
    def name(self) -> str:
        """The backbone's name, such as ``DAT-S++``."""
        if self.family is None:
            return 'neither DAT nor DAT++'
        if self.variant is not None:
            return self.family.replace('DAT', f'DAT-{self.variant}')
        return (
            f'an unpublished {self.family} of '
            f'{"-".join(map(str, self.embed_dims))} channels and '
            f'{"-".join(map(str, self.depths))} blocks'
        )

    @property
    def arch(self) -> str | None:
        """Its name in the arch zoo, such as ``'dat_pp_s'``, if it has one."""
        if self.variant is None:
            return None
        arch = f'{_STEMS[self.family]}_{self.variant.lower()}'
        large = f'{arch}_{self.img_size}'
        return large if large in ARCH_ZOO else arch

    def __str__(self) -> str:
        """E.g. ``DAT-S++ for classification at 224``."""
        if self.family is None:
            return self.name
        # Dense models take any size, so their tables' size is of no interest.
        at = f' at {self.img_size}' if self.img_size is not None else ''
        if self.task is None:
            return f'{self.name}, a backbone alone{at}'
        if self.task == 'classification':
            return f'{self.name} for classification{at}'
        using = f' with {self.method}' if self.method is not None else ''
        return f'{self.name} for {self.task}{using}'


def identify(checkpoint: Mapping[str, Any]) -> Identity:
    """Says what a checkpoint or state dict holds.

    It uses only names and shapes, so tensors may be on the ``meta`` device.

    Args:
        checkpoint: Entries by name, bare or under ``model`` or
            ``state_dict``, with the authors' names or ours, with or without
            ``backbone.``; anything with a ``shape`` will do as a value.

    Returns:
        The identity; its ``family`` is None for a file of something else.
    """
    shapes = {
        name: tuple(value.shape)
        for name, value in released.entries_of(checkpoint).items()
        if hasattr(value, 'shape')
    }
    parameters = sum(
        _volume(shape)
        for name, shape in shapes.items()
        if not _NOT_LEARNT.search(name)
    )
    backbone = _backbone(shapes)
    task, method = _task(shapes)
    family = _family(backbone)
    classes = _classes(shapes)
    if family is None:
        return Identity(
            None, None, None, task, method, parameters, classes=classes
        )
    dims, depths, heads = _sizes(backbone)
    return Identity(
        family,
        _variant(family, dims, depths, heads),
        _img_size(backbone),
        task,
        method,
        parameters,
        dims,
        depths,
        classes,
    )


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for side in shape:
        volume *= side
    return volume


def _backbone(shapes: dict[str, tuple[int, ...]]) -> dict:
    """Shapes of the backbone's entries under our names."""
    inside = {
        name.removeprefix('backbone.'): shape
        for name, shape in shapes.items()
        if name.startswith('backbone.')
    }
    entries = inside or shapes
    if released.is_released(entries):
        return released.translate(entries)
    return entries


def _family(backbone: dict[str, tuple[int, ...]]) -> str | None:
    """Told by the patch embedding, and by neighbourhoods in place of windows.

    DAT+ is DAT++ without its convolutions.
    """
    if 'patch_embed.conv1.weight' not in backbone or not any(
        name.startswith('stages.') for name in backbone
    ):
        return None
    if 'patch_embed.conv2.weight' in backbone:
        return 'DAT++'
    return 'DAT+' if 'stages.0.blocks.0.attn.rpb' in backbone else 'DAT'


def _sizes(
    backbone: dict[str, tuple[int, ...]],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int | None, ...]]:
    """Channels, blocks and heads of each stage."""
    dims, depths, heads = {}, {}, {}
    for name, shape in backbone.items():
        found = re.match(r'stages\.(\d+)\.blocks\.(\d+)\.(.*)', name)
        if not found:
            continue
        stage, block = int(found[1]), int(found[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
        if found[3] in ('norm1.weight', 'norm.weight'):
            dims[stage] = shape[0]
        elif found[3] in ('attn.rpb', 'attn.rpe_table'):
            heads[stage] = shape[0]
        elif found[3] == 'attn.relative_position_bias_table':
            heads[stage] = shape[1]
    stages = sorted(depths)
    return (
        tuple(dims.get(stage, 0) for stage in stages),
        tuple(depths[stage] for stage in stages),
        tuple(heads.get(stage) for stage in stages),
    )


def _variant(
    family: str,
    dims: tuple[int, ...],
    depths: tuple[int, ...],
    heads: tuple[int | None, ...],
) -> str | None:
    """The letter of the published model of this size."""
    stem = _STEMS[family]
    for arch, sizes in ARCH_ZOO.items():
        letter = arch.removeprefix(f'{stem}_')[0]
        if (
            arch.startswith(f'{stem}_{letter}')
            and letter in 'tsb'
            and tuple(sizes['embed_dims']) == dims
            and tuple(sizes['depths']) == depths
            and all(a in (b, None) for a, b in zip(heads, sizes['num_heads']))
        ):
            return letter.upper()
    return None


def _img_size(backbone: dict[str, tuple[int, ...]]) -> int | None:
    """The side of the image for which the coarsest table was made."""
    tables = {
        int(name.split('.')[1]): shape
        for name, shape in backbone.items()
        if re.fullmatch(r'stages\.\d+\.blocks\.\d+\.attn\.rpe_table', name)
        and len(shape) == 3
    }
    if not tables:
        return None
    stage = max(tables)
    return (tables[stage][1] + 1) // 2 * 4 * 2**stage


def _classes(shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Classes that the head tells apart."""
    for pattern, background in _CLASSIFIERS:
        for name, shape in shapes.items():
            if re.fullmatch(pattern, name):
                return shape[0] - background
    scores = shapes.get('bbox_head.retina_cls.weight')
    boxes = shapes.get('bbox_head.retina_reg.weight')
    if scores is None or boxes is None:
        return None
    anchors = max(boxes[0] // 4, 1)  # of each place; a box has four numbers
    return scores[0] // anchors


def _task(shapes: dict[str, tuple[int, ...]]) -> tuple[str | None, str | None]:
    """Task and method, by the heads."""
    for pattern, task, method in _METHODS:
        if any(re.match(pattern, name) for name in shapes):
            return task, method
    return None, None
