# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""DAT and DAT++, the Deformable Attention Transformers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from ..checkpoints.hooks import adapt_checkpoints_of
from ..checkpoints.starting import StartFrom
from ..ops.dispatch import BACKEND_NAMES
from ..registry import MODELS
from ..utils.errors import SettingError
from .arch import (
    ARCH_ZOO,
    NUM_STAGES,
    OVERRIDES,
    Architecture,
    check_flags,
    check_rates,
    is_whole,
    per_stage,
    require,
    resolve_arch,
)
from .arguments import (
    check_init_cfg,
    is_pretrained,
    takes_known_arguments,
)
from .block import Stage, backend_names
from .embed import down_projection, patch_embedding
from .feature_info import FeatureInfo, feature_info
from .scripted.forms import Scriptable
from .symbolic import is_symbolic


# Also in mmengine's root registry, so that ``type='DAT'`` resolves from the
# scope of any OpenMMLab package once mmdat is imported.
@MMENGINE_MODELS.register_module()
@MODELS.register_module()
class DAT(Scriptable, BaseModule):
    """Deformable Attention Transformer.

    A backbone with four stages, after [Vision Transformer with Deformable
    Attention](https://arxiv.org/abs/2201.00520) (DAT, CVPR 2022) and
    [DAT++](https://arxiv.org/abs/2309.01430). The authors' released files
    load without conversion.

    A setting that is None comes from `arch`. A setting marked "per stage" is
    one value for all stages or a list of four.

    Args:
        arch: One of ``dat_t dat_s dat_b dat_b_384 dat_p_t dat_pp_t dat_pp_s
            dat_pp_b dat_pp_b_384``, or a dict. The dict must have
            ``embed_dims``, ``depths`` and ``num_heads`` (if ``embed_dims`` is
            one number, it doubles from stage to stage). It may have ``family``
            (``'dat'`` or ``'dat_pp'``, the default) and any of the settings
            below.
        in_channels: Channels of the image.
        out_indices: Stages whose maps are returned, from 0 to 3; the number -1
            means the last one.
        img_size: Training resolution, a number or (H, W). It sets the size of
            the position-bias tables only; the input may have any size.
        attentions: Four strings with one letter per block: L window, S
            shifted window, N neighbourhood, D deformable, P pyramid, X
            depthwise convolution, E slide, Q learnt queries, F full.
        window_size: Side of the windows of L and S, and of the kernel of X;
            per stage.
        neighborhood_size: Side K of the neighbourhoods of N; per stage.
        sr_ratio: Factor by which P reduces each side of its map of keys; per
            stage.
        offset_groups: Number of groups of heads of D; the heads of a group
            share their points; per stage.
        offset_kernel: Side of the convolution that predicts the offsets of D;
            per stage.
        offset_stride: Queries per key of D along each axis; per stage.
        offset_range: Largest offset of D in cells of the key grid, -1 for
            none; per stage.
        use_offsets: Whether D moves its points; per stage.
        position_bias: Position bias of D: ``'table'``, ``'fixed'``,
            ``'depthwise_conv'``, ``'log_continuous'`` or ``'none'``; per
            stage.
        layer_scale_init_value: Initial value of the layer scales, 0 for no
            layer scale; per stage.
        mlp_ratio: Ratio of hidden channels to channels in the MLPs.
        drop_rate: Dropout after projections.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block; it rises linearly
            from 0 over all blocks.
        frozen_stages: -1 freezes nothing, 0 the patch embedding; n > 0 also
            freezes the first n stages, their output norms and the
            down-projections between them.
        norm_eval: Keep norm layers in eval mode. The result is the same,
            because layer norms behave alike in both modes.
        with_cp: Gradient checkpointing: recompute blocks in the backward pass
            to save memory; per stage. The first stages need the most memory.
        backend: Backend that all attentions which have it must use:
            ``'triton'``, ``'separable'``, ``'sdpa'`` or ``'reference'``. None
            chooses automatically.
        init_cfg: Initialisation, e.g. ``dict(type='Pretrained',
            checkpoint='dat_tiny_in1k_224.pth')``. With ``strict=False`` the
            entries that fit are loaded, and the first kernel is adapted to
            other `in_channels`.

    Raises:
        SettingError: A setting breaks a rule; the message gives the rule and
            the value. It is a ValueError and a TypeError.

    Examples:
        >>> import torch
        >>> from mmdat import DAT
        >>> model = DAT('dat_t').eval()
        >>> for level in model(torch.rand(1, 3, 64, 96)):
        ...     print(tuple(level.shape))
        (1, 96, 16, 24)
        (1, 192, 8, 12)
        (1, 384, 4, 6)
        (1, 768, 2, 3)
    """

    arch_zoo = ARCH_ZOO

    @takes_known_arguments
    def __init__(
        self,
        arch: str | dict[str, Any] = 'dat_t',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        img_size: int | Sequence[int] | None = None,
        attentions: Sequence[str] | None = None,
        window_size: int | Sequence[int] | None = None,
        neighborhood_size: int | Sequence[int] | None = None,
        sr_ratio: int | Sequence[int] | None = None,
        offset_groups: int | Sequence[int] | None = None,
        offset_kernel: int | Sequence[int] | None = None,
        offset_stride: int | Sequence[int] | None = None,
        offset_range: float | Sequence[float] | None = None,
        use_offsets: bool | Sequence[bool] | None = None,
        position_bias: str | Sequence[str] | None = None,
        layer_scale_init_value: float | Sequence[float] | None = None,
        mlp_ratio: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool | Sequence[bool] = False,
        backend: str | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        given = dict(locals())
        check_init_cfg(init_cfg)
        super().__init__(init_cfg=init_cfg)
        overrides = {name: given[name] for name in OVERRIDES}
        resolved = resolve_arch(arch, overrides)
        check_rates(
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
        )
        check_flags(norm_eval=norm_eval)
        check_flags(
            **{
                f'with_cp of stage {i}': flag
                for i, flag in enumerate(per_stage('with_cp', with_cp))
            }
        )
        _check_backend(backend, resolved)
        require(
            is_whole(in_channels),
            'in_channels must be a whole number of at least 1',
            in_channels,
        )
        require(
            is_whole(frozen_stages, -1) and frozen_stages <= NUM_STAGES,
            f'frozen_stages must be one of -1 to {NUM_STAGES}',
            frozen_stages,
        )
        self.arch = resolved
        self.in_channels = in_channels
        self.out_indices = _check_out_indices(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        dims = [stage.dim for stage in resolved.stages]
        depths = [stage.depth for stage in resolved.stages]
        last = max(sum(depths) - 1, 1)
        rates = iter(drop_path_rate * i / last for i in range(sum(depths)))
        conv = resolved.conv_embed
        stem = resolved.stem_channels
        self.patch_embed = patch_embedding(in_channels, stem, conv)
        self.stem_proj = nn.Linear(stem, dims[0]) if stem != dims[0] else None
        self.stages = nn.ModuleList(
            Stage(
                resolved,
                stage,
                [next(rates) for _ in range(stage.depth)],
                drop_rate,
                attn_drop_rate,
                again,
                backend,
            )
            for stage, again in zip(
                resolved.stages, per_stage('with_cp', with_cp)
            )
        )
        self.downsamples = nn.ModuleList(
            down_projection(dims[i], dims[i + 1], conv)
            for i in range(NUM_STAGES - 1)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dims[i]))
        adapt_checkpoints_of(self)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps of a batch of images.

        Args:
            x: Images (B, in_channels, H, W) of any size and memory layout, in
                the floating type of the parameters or of autocast. An image
                with NaN or infinity gives NaN; the other images of the batch
                are not affected.

        Returns:
            For each of `out_indices` a normalised map (B, C, ceil(H / s),
            ceil(W / s)) with stride s of 4, 8, 16, 32.

        Raises:
            ValueError: `x` is no tensor, or has another shape or an integer
                type.
        """
        if not is_symbolic(x):
            self._check_images(x)
        images, outs = x, []
        for i in range(NUM_STAGES):
            x = self.stage_map(i, x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                outs.append(_laid_out_like(images, out.permute(0, 3, 1, 2)))
        return tuple(outs)

    def stage_map(self, stage: int, x: Tensor) -> Tensor:
        """One step through the pyramid.

        Args:
            stage: Number of the stage to run.
            x: Images (B, in_channels, H, W) for stage 0, else the map (B, H,
                W, C) of the previous stage.

        Returns:
            The stage's map (B, H', W', C'), not normalised.
        """
        if stage > 0:
            x = self.downsamples[stage - 1](x)
        else:
            x = self.patch_embed(x.permute(0, 2, 3, 1))  # B, H / 4, W / 4, C
            if self.stem_proj is not None:
                x = self.stem_proj(x)
        return self.stages[stage](x)

    def _check_images(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise SettingError(
                f'DAT takes images as one tensor (B, {self.in_channels}, H, '
                f'W); got a {type(x).__name__}.'
            )
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(
                f'DAT takes images of shape (B, {self.in_channels}, H, W) '
                f'with at least one pixel; got {tuple(x.shape)}.'
            )
        if not x.is_floating_point():
            raise ValueError(
                f'DAT takes images of a floating type; got {x.dtype}, '
                f'normalise them first.'
            )

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides of the maps, as timm's models tell them."""
        return feature_info(self.arch, self.out_indices)

    def init_weights(self) -> None:
        """Initialises as `init_cfg` says; its checkpoint is read as data.

        Raises:
            UserError: The file is missing, is not a checkpoint, asks to run
                code, or does not fit and ``strict=False`` is not set.
        """
        init_cfg = self.init_cfg
        parts = init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]
        # mmengine's own Pretrained is never strict. Weights of a file come
        # after all other initialisation, as they do there.
        self.init_cfg = [
            dict(part, type=StartFrom) if is_pretrained(part) else part
            for part in sorted(parts, key=is_pretrained)
            if part
        ] or None
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning-rate decay.

        The patch embedding is layer 0, and every block is one layer. A
        down-projection belongs to the block before it. Output norms belong to
        the layers after the backbone, because detectors and segmentors start
        with new ones.

        Args:
            param_name: Name of a parameter of the whole model.
            prefix: Prefix of the names of this backbone's parameters in that
                model, such as ``'backbone.'``.

        Returns:
            The depth, and the number of layers. Everything outside this
            backbone has the largest depth, number of layers - 1.
        """
        depths = [stage.depth for stage in self.arch.stages]
        last = sum(depths) + 1
        depth = last
        if param_name.startswith(prefix):
            part, *numbers = param_name[len(prefix) :].split('.')
            if part in ('patch_embed', 'stem_proj'):
                depth = 0
            elif part == 'stages':  # stages.STAGE.blocks.BLOCK
                depth = sum(depths[: int(numbers[0])]) + int(numbers[2]) + 1
            elif part == 'downsamples':
                depth = sum(depths[: int(numbers[0]) + 1])
        return depth, last + 1

    def train(self, mode: bool = True) -> 'DAT':
        """Sets the mode; frozen stages and `norm_eval` norms stay in eval."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        """Puts the frozen part in eval mode and stops its gradients."""
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen.append(self.patch_embed)
            if self.stem_proj is not None:
                frozen.append(self.stem_proj)
        for i in range(self.frozen_stages):
            frozen.append(self.stages[i])
            if i > 0:
                frozen.append(self.downsamples[i - 1])
            if i in self.out_indices:
                frozen.append(getattr(self, f'norm{i}'))
        for module in frozen:
            module.eval().requires_grad_(False)


def _laid_out_like(images: Tensor, x: Tensor) -> Tensor:
    """Lays `x` out with channels last if `images` are, else contiguously."""
    if images.stride(1) == 1 and images.stride(3) == images.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    return x.contiguous()


torch.fx.wrap('_laid_out_like')  # one node of a symbolic trace


def _check_out_indices(out_indices: Any) -> tuple[int, ...]:
    if is_whole(out_indices, -NUM_STAGES) and out_indices < 0:
        out_indices += NUM_STAGES
    listed = isinstance(out_indices, Sequence)
    indices = tuple(out_indices) if listed else (out_indices,)
    require(
        bool(indices)
        and all(is_whole(i, 0) and i < NUM_STAGES for i in indices)
        and all(a < b for a, b in zip(indices, indices[1:])),
        f'out_indices must be rising stage numbers out of 0 to '
        f'{NUM_STAGES - 1}',
        out_indices,
    )
    return indices


def _check_backend(backend: Any, arch: Architecture) -> None:
    letters = {x for stage in arch.stages for x in stage.attentions}
    known = [name for name in BACKEND_NAMES if name in backend_names(letters)]
    require(
        backend is None or backend in known,
        f'backend must be one that an attention of this model has, '
        f'{", ".join(known) or "none"}, or None to choose automatically',
        backend,
    )
