# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Recording points and attention during a forward pass.

The model is not changed: hooks of torch record while ``DATRecorder`` is
active, and are removed afterwards.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..models import DAT
from ..models.attention import DeformableAttention
from ..ops.coordinates import reference_points_yx
from ..ops.custom_op import is_exporting
from ..utils.errors import SettingError
from .frames import Frame, MapGrid, map_grids
from .weights import AttentionWeights


def find_backbone(model: nn.Module) -> DAT:
    """The (first) DAT in a model, a wrapped one too.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, DAT):
            return module
    raise ValueError(
        f'Points can be shown of a model with a DAT in it; '
        f'{type(model).__name__} has none.'
    )


def deformable_blocks(
    model: nn.Module,
) -> dict[tuple[int, int], DeformableAttention]:
    """The deformable attention of a model by (stage, block), both from 0."""
    return {
        (i, j): block.attn
        for i, stage in enumerate(find_backbone(model).stages)
        for j, block in enumerate(stage.blocks)
        if isinstance(getattr(block, 'attn', None), DeformableAttention)
    }


def select_blocks(
    model: nn.Module, stage: int | None = None, block: int | None = None
) -> list[tuple[int, int]]:
    """The deformable blocks of one stage or of all.

    Args:
        model: The model.
        stage: From 0; None for all stages.
        block: From 0 within the stage; None for all blocks.

    Returns:
        (stage, block) of each, in the order they are computed.

    Raises:
        SettingError: There are none; the message lists those there are.
    """
    known = list(deformable_blocks(model))
    found = [
        (i, j) for i, j in known if stage in (None, i) and block in (None, j)
    ]
    if not found:
        parts = [
            name if number is None else f'{name} {number}'
            for name, number in (('stage', stage), ('block', block))
            if number is not None
        ]
        raise SettingError(
            f'{", ".join(parts) or "This model"} has no deformable attention; '
            f'{_listed(known)}.'
        )
    return found


def _listed(blocks: Sequence[tuple[int, int]]) -> str:
    """E.g. ``stage 2 has it in blocks 1, 3, 5, stage 3 in block 1``."""
    if not blocks:
        return 'no stage of this model has any'
    parts = []
    for stage in dict.fromkeys(i for i, _ in blocks):
        inside = [str(j) for i, j in blocks if i == stage]
        has = 'in' if parts else 'has it in'
        word = 'block' if len(inside) == 1 else 'blocks'
        parts.append(f'stage {stage} {has} {word} {", ".join(inside)}')
    return ', '.join(parts)


@dataclass
class BlockRecord:
    """Points and attention of one block for a batch of B pictures.

    Positions are float64 (x, y) in pixels of the original pictures, pixel
    centres at whole numbers. Heads of one group share their points and lie
    next to each other.

    Attributes:
        stage: Of the block, from 0.
        block: Within the stage, from 0.
        stride: Input pixels per pixel of the stage's map.
        map_size: (H, W) of the map of queries.
        frames: Where each input lies in its picture.
        input_size: (H, W) of the network's input, padding included.
        points_xy: Where the keys are read, (B, groups, Hk, Wk, 2).
        reference_xy: The reference points, where keys would be read without
            offsets, (B, Hk, Wk, 2).
        inside: Whether each point lies on the picture, (B, groups, Hk, Wk).
        clamped: Whether DAT++ clamped each point to the edge of the map.
        received: Share of the attention of all queries on the picture that
            each key receives, (B, heads, Hk, Wk). It sums to 1 over the keys.
            None if it was not recorded.
        queries_xy: Centres of the map pixels next to the chosen queries,
            (B, Q, 2).
        weights: Their attention, (B, heads, Q, Hk, Wk), summing to 1 over the
            keys.
    """

    stage: int
    block: int
    stride: int
    map_size: tuple[int, int]
    frames: tuple[Frame, ...]
    input_size: tuple[int, int]
    points_xy: Tensor
    reference_xy: Tensor
    inside: Tensor
    clamped: Tensor
    received: Tensor | None
    queries_xy: Tensor
    weights: Tensor

    @property
    def groups(self) -> int:
        """Number of groups of heads; each group has separate points."""
        return self.points_xy.shape[1]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.weights.shape[1]

    @property
    def displacement(self) -> Tensor:
        """How far each point was moved, in pixels, (B, groups, Hk, Wk)."""
        moved = self.points_xy - self.reference_xy[:, None]
        return moved.norm(dim=-1)

    def group_of(self, head: int) -> int:
        """The group whose points a head reads."""
        return head // (self.heads // self.groups)

    def by_group(self, of_heads: Tensor) -> Tensor:
        """Means over the heads of each group, (B, groups, ...)."""
        return of_heads.unflatten(1, (self.groups, -1)).mean(dim=2)


Pixels = Sequence[Sequence[float]]
Queries = Pixels | Mapping[tuple[int, int], Pixels]


class DATRecorder:
    """Records chosen blocks during the forward passes in its context.

    Args:
        model: A DAT, or a model that contains one.
        blocks: (stage, block) of the blocks, both from 0; None for all with
            deformable attention.
        queries_xy: Pixels (x, y) of the original pictures, as queries whose
            attention to record; or such pixels by (stage, block).
        frames: How the inputs were made from the pictures: one frame for each
            picture of the batch, or one for all. None: the input is the
            picture.
        received: Whether to compute how much attention each key receives,
            which costs about as much as the attention itself.

    Raises:
        ValueError: A block has no deformable attention, or, during the forward
            pass, a query lies outside its picture or the model is exported.

    Examples:
        >>> import torch
        >>> from mmdat import DAT
        >>> from mmdat.visualization import DATRecorder
        >>> model = DAT('dat_t').eval()
        >>> with DATRecorder(model, queries_xy=[(40, 20)]) as recorder:
        ...     outs = model(torch.rand(1, 3, 64, 96))
        >>> record = recorder[3, 1]
        >>> record.points_xy.shape  # B, groups, Hk, Wk, (x, y)
        torch.Size([1, 6, 2, 3, 2])
        >>> record.weights.shape  # B, heads, queries, Hk, Wk
        torch.Size([1, 24, 1, 2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Iterable[tuple[int, int]] | None = None,
        queries_xy: Queries = (),
        frames: Frame | Sequence[Frame] | None = None,
        received: bool = True,
    ) -> None:
        known = deformable_blocks(model)
        chosen = list(known) if blocks is None else [tuple(b) for b in blocks]
        for stage, block in chosen:
            if (stage, block) not in known:
                raise ValueError(
                    f'Block {block} of stage {stage} has no deformable '
                    f'attention; {_listed(list(known))}.'
                )
        self._backbone = find_backbone(model)
        self._modules = {key: known[key] for key in chosen}
        if not isinstance(queries_xy, Mapping):
            queries_xy = dict.fromkeys(chosen, queries_xy)
        self._queries_xy = {
            key: torch.tensor(
                [tuple(q) for q in queries_xy[key]], dtype=torch.float64
            ).reshape(-1, 2)
            for key in chosen
        }
        self._frames = frames
        self._received = received
        self._handles: list[Any] = []
        self._now: tuple[Frame, ...] = ()
        self._input_size = (0, 0)
        #: Of the latest forward pass, by (stage, block).
        self.records: dict[tuple[int, int], BlockRecord] = {}

    def __enter__(self) -> 'DATRecorder':
        self._handles = [
            self._backbone.register_forward_pre_hook(self._on_input)
        ]
        grids = map_grids(self._backbone)
        for key, module in self._modules.items():
            look = partial(self._on_block, key, grids[key[0]])
            self._handles.append(module.register_forward_hook(look))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __getitem__(self, key: tuple[int, int]) -> BlockRecord:
        return self.records[key]

    def _on_input(self, _: nn.Module, args: tuple[Tensor]) -> None:
        """Sets the frames of a batch, and checks that queries are visible."""
        if is_exporting():
            raise ValueError(
                'A model cannot be traced or exported while a DATRecorder '
                'records it; export outside its with block.'
            )
        batch, _, height, width = args[0].shape
        frames = self._frames or Frame((height, width))
        frames = (frames,) * batch if isinstance(frames, Frame) else frames
        if len(frames) != batch:
            raise ValueError(
                f'There must be one frame, or one for each picture of the '
                f'batch; got {len(frames)} for {batch} pictures.'
            )
        self._now = tuple(frames)
        self._input_size = (height, width)
        for frame in self._now:
            for queries_xy in self._queries_xy.values():
                check_queries(queries_xy, frame, (height, width))

    @torch.no_grad()
    def _on_block(
        self,
        key: tuple[int, int],
        grid: MapGrid,
        module: DeformableAttention,
        args: tuple[Tensor],
        _: Tensor,
    ) -> None:
        """Computes the attention of a block again, with explicit weights."""
        map_size = tuple(args[0].shape[1:3])
        attention = AttentionWeights(module, args[0])
        points_yx = attention.points_yx.cpu()
        key_size = points_yx.shape[2:4]
        reference_yx = reference_points_yx(
            *key_size, module.convention, points_yx
        )
        centres_xy = grid.centres(map_size)
        cells = self._each(
            lambda frame: grid.nearest(
                frame.to_input(self._queries_xy[key]), map_size
            )
        )
        weights = attention.of(cells[..., 0] * map_size[1] + cells[..., 1])
        received = None
        if self._received:
            on_picture = self._each(
                lambda frame: frame.contains(frame.to_picture(centres_xy))
            )
            received = attention.received(on_picture.flatten(1))
            received = received.unflatten(-1, key_size).cpu()
        clamps = module.offset_range < 0 and module.conv_offset is not None
        points_xy = self._each(
            Frame.to_picture, grid.to_input(points_yx, map_size)
        )
        reference_xy = grid.to_input(reference_yx, map_size)
        self.records[key] = BlockRecord(
            stage=key[0],
            block=key[1],
            stride=grid.stride,
            map_size=map_size,
            frames=self._now,
            input_size=self._input_size,
            points_xy=points_xy,
            reference_xy=self._each(lambda f: f.to_picture(reference_xy)),
            inside=self._each(Frame.contains, points_xy),
            clamped=(points_yx.abs() == 1).any(dim=-1) & clamps,
            received=received,
            queries_xy=self._each(
                Frame.to_picture, centres_xy[cells[..., 0], cells[..., 1]]
            ),
            weights=weights.unflatten(-1, key_size).cpu(),
        )

    def _each(self, function: Callable[..., Tensor], *of: Tensor) -> Tensor:
        """Applies a function to the frame, and the part, of each picture."""
        return torch.stack(
            [function(*parts) for parts in zip(self._now, *of, strict=True)]
        )


def check_queries(
    queries_xy: Pixels | Tensor,
    frame: Frame,
    input_size: Sequence[int],
) -> None:
    """Raises SettingError if a query is outside the network's input.

    Args:
        queries_xy: Pixels (x, y) of the picture.
        frame: Where the input lies in the picture.
        input_size: (H, W) of the input.
    """
    queries_xy = torch.as_tensor(queries_xy, dtype=torch.float64)
    queries_xy = queries_xy.reshape(-1, 2)
    height, width = frame.size
    corner_xy = queries_xy.new_tensor([width - 1, height - 1])
    lost = ~((queries_xy >= 0) & (queries_xy <= corner_xy)).all(dim=-1)
    if lost.any():
        x, y = queries_xy[lost][0].tolist()
        raise SettingError(
            f'A query must lie on the picture, x in 0 to {width - 1} and '
            f'y in 0 to {height - 1}; got x {x:g}, y {y:g}.'
        )
    seen = frame.to_input(queries_xy)
    last_xy = seen.new_tensor([input_size[1], input_size[0]]) - 0.5
    lost = ((seen < -0.5) | (seen > last_xy)).any(dim=-1)
    if lost.any():
        x, y = queries_xy[lost][0].tolist()
        ends = torch.stack([torch.full_like(last_xy, -0.5), last_xy])
        ends = frame.to_picture(ends).sort(dim=0)[0]
        low, high = ends[0].ceil().int(), ends[1].floor().int()
        raise SettingError(
            f'A query must lie on the part of the picture that is left '
            f'after cropping, x in {low[0]} to {high[0]} and y in '
            f'{low[1]} to {high[1]}; got x {x:g}, y {y:g}.'
        )
