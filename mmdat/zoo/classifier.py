# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A backbone with a classifier, and the methods of timm's models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models import DAT
from ..models.arch import NUM_STAGES, check_rates, is_whole, require
from ..models.feature_info import feature_info

_TABLES = ('relative_position_bias_table', 'rpb', 'rpe_table')
_POOLS = ('avg', '')


class Head(nn.Module):
    """Global average pooling, dropout and a linear layer.

    Args:
        in_features: Channels of the map.
        num_classes: Number of classes; 0 for no linear layer.
        global_pool: ``'avg'``, or ``''`` for no pooling.
        drop_rate: Dropout before the linear layer.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str) -> None:
        """Replaces the linear layer by a new one, or removes it."""
        require(
            is_whole(num_classes, 0),
            'num_classes must be a whole number of at least 0',
            num_classes,
        )
        require(
            global_pool in _POOLS,
            "global_pool must be 'avg', or '' for none",
            global_pool,
        )
        require(
            bool(global_pool) or not num_classes,
            "global_pool must be 'avg' for a classifier",
            global_pool,
        )
        self.global_pool = global_pool
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.in_features, num_classes)
            nn.init.trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, C, H, W) to (B, num_classes), or to (B, C)."""
        if self.global_pool == 'avg':
            x = x.mean([2, 3])
        x = self.drop(x)
        return x if pre_logits else self.fc(x)


class DATClassifier(nn.Module):
    """DAT with a classifier; parameters have the names of mmpretrain's.

    Args:
        arch: See ``mmdat.models.DAT``.
        num_classes: Number of classes, 0 for pooled features.
        in_chans: Channels of the images.
        global_pool: ``'avg'``, or ``''`` for the last map.
        img_size: Resolution that sets the size of position-bias tables.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after projections.
        **kwargs: Further arguments of ``mmdat.models.DAT``.

    Attributes:
        num_features: Channels of the last map.
        feature_info: Channels, strides and modules of the four stages.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'dat_t',
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        img_size: int | Sequence[int] | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_rates(drop_rate=drop_rate)
        self.backbone = DAT(
            arch,
            in_channels=in_chans,
            out_indices=(NUM_STAGES - 1,),
            img_size=img_size,
            drop_rate=proj_drop_rate,
            **kwargs,
        )
        stages = self.backbone.arch.stages
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = stages[-1].dim
        self.feature_info = feature_info(
            self.backbone.arch, range(NUM_STAGES), 'backbone.'
        )
        self.head = Head(
            self.num_features, num_classes, global_pool, drop_rate
        )

    @property
    def global_pool(self) -> str:
        """The kind of pooling."""
        return self.head.global_pool

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to scores (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the normalised last map (B, num_features, H/32, W/32)."""
        return self.backbone(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps the last map to scores, or with `pre_logits` to features."""
        return self.head(x, pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Any:
        """Returns the maps of stages, and the result of ``forward_features``.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Numbers of stages, a number n for the last n stages, or
                None for all.
            norm: Whether to normalise the map of the last stage. The other
                stages have no norm in a classifier.
            stop_early: Whether to skip the stages after the last one in
                `indices`.
            output_fmt: ``'NCHW'`` or ``'NHWC'``.
            intermediates_only: Whether to return only the maps.
        """
        require(
            output_fmt in ('NCHW', 'NHWC'),
            "output_fmt must be 'NCHW' or 'NHWC'",
            output_fmt,
        )
        require(
            intermediates_only or not stop_early,
            'stop_early must come with intermediates_only',
            stop_early,
        )
        wanted = stage_numbers(indices)
        last = max(wanted) if intermediates_only else NUM_STAGES - 1
        maps = []
        for i in range(last + 1):
            x = self.backbone.stage_map(i, x)
            normed = x
            if i == NUM_STAGES - 1 and (norm or not intermediates_only):
                normed = self.backbone.norm3(x)
            if i in wanted:
                out = normed if norm else x
                if output_fmt == 'NCHW':
                    out = out.permute(0, 3, 1, 2).contiguous()
                maps.append(out)
        if intermediates_only:
            return maps
        return normed.permute(0, 3, 1, 2).contiguous(), maps

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = None,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Removes the layers that the maps of some stages do not need.

        Returns:
            The numbers of the stages, for ``forward_intermediates``.
        """
        wanted = stage_numbers(indices)
        last = max(wanted)
        self.backbone.stages = self.backbone.stages[: last + 1]
        self.backbone.downsamples = self.backbone.downsamples[:last]
        if prune_norm or last < NUM_STAGES - 1:
            self.backbone.norm3 = nn.Identity()
        if prune_head:
            self.reset_classifier(0, '')
        return wanted

    def get_classifier(self) -> nn.Module:
        """Returns the linear layer, or an identity without classes."""
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None
    ) -> None:
        """Creates a new classifier, or removes it with `num_classes` 0."""
        pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, pool)
        self.head.fc.to(next(self.backbone.parameters()).device)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turns the recomputation of blocks in the backward pass on or off."""
        for stage in self.backbone.stages:
            stage.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Returns a function from parameter names to depths.

        A depth is the number of a block, or of a stage if `coarse`. See
        ``mmdat.models.DAT.get_layer_depth``.
        """
        depths = [stage.depth for stage in self.backbone.arch.stages]
        firsts = [sum(depths[:i]) + 1 for i in range(NUM_STAGES)]

        def depth_of(name: str) -> int:
            depth, _ = self.backbone.get_layer_depth(name, 'backbone.')
            if not coarse:
                return depth
            head = depth > sum(depths)
            return sum(depth >= first for first in firsts) + head

        return depth_of

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Returns the names of position-bias tables, which have no decay."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.rpartition('.')[2] in _TABLES
        }

    def load_pretrained(self, path: str, prefix: str = '') -> None:
        """Loads weights, see ``mmdat.zoo.weights.load_weights``.

        Args:
            path: The file.
            prefix: Part of timm's signature; must be ``''``.
        """
        from .weights import load_weights

        require(not prefix, "prefix must be ''", prefix)
        load_weights(self, path)

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns the form for ``torch.jit.script``: the forward pass only."""
        return _Scriptable(self)


class _Scriptable(nn.Module):
    """The forward pass of a classifier, with shared parameters."""

    def __init__(self, model: DATClassifier) -> None:
        super().__init__()
        self.backbone = model.backbone.__prepare_scriptable__()
        self.head = model.head
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[0])


def stage_numbers(indices: int | Sequence[int] | None) -> list[int]:
    """Converts timm's forms of stage indices to stage numbers."""
    if indices is None:
        return list(range(NUM_STAGES))
    if is_whole(indices):
        indices = range(-indices, 0)
    listed = isinstance(indices, Sequence) and not isinstance(indices, str)
    require(
        listed
        and len(indices) > 0
        and all(is_whole(i, -NUM_STAGES) and i < NUM_STAGES for i in indices),
        f'indices must be stage numbers from {-NUM_STAGES} to '
        f'{NUM_STAGES - 1}',
        indices,
    )
    return [i % NUM_STAGES for i in indices]
