# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Layer-wise learning-rate decay for detectors, segmentors and classifiers.

MMPretrain has such a constructor for its classifiers. Those of MMDetection and
MMSegmentation support only a few of their backbones.
"""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..models import DAT
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Lowers the learning rate of a DAT layer by layer, from the heads down.

    The rate of a parameter n layers below the heads is multiplied by
    ``layer_decay_rate ** n``; ``DAT.get_layer_depth`` gives the layer. All
    other keys of ``paramwise_cfg`` have their usual meaning and combine with
    it, such as ``custom_keys`` and the multipliers of weight decay. Each
    parameter gets a separate group, with its ``param_name`` and ``lr_scale``.

    Args:
        optim_wrapper_cfg: As in mmengine; its optimizer must have an ``lr``.
        paramwise_cfg: As in mmengine, with ``layer_decay_rate`` above 0 and
            at most 1.

    Raises:
        ValueError: The rate is missing or invalid, the optimizer has no
            ``lr``, or the model has no DAT.

    Examples:
        In a config for any OpenMMLab package, without an import:

        >>> optim_wrapper = dict(
        ...     constructor='mmdat.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(layer_decay_rate=0.8),
        ... )
    """

    def __init__(
        self,
        optim_wrapper_cfg: dict[str, Any],
        paramwise_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(
                'paramwise_cfg.layer_decay_rate must be a number above 0 and '
                f'at most 1; got {rate!r}.'
            )
        if self.base_lr is None:
            raise ValueError(
                'Layer-wise decay scales the learning rate, so the optimizer '
                f'must have an lr; got {self.optimizer_cfg}.'
            )
        self.rate = rate

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: Any = None,
    ) -> None:
        """Makes the usual groups, then scales their learning rates.

        Args:
            params: The groups, extended in place.
            module: The model, or in calls from within a part of it.
            prefix: Name of that part.
            is_dcn_module: As in mmengine.
        """
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            self._scale(params, module)

    def _scale(self, groups: list[dict[str, Any]], model: nn.Module) -> None:
        backbones = [
            (f'{name}.' if name else '', part)
            for name, part in model.named_modules()
            if isinstance(part, DAT)
        ]
        if not backbones:
            raise ValueError(
                'LayerDecayOptimWrapperConstructor needs a model with a DAT; '
                f'got {type(model).__name__} without one.'
            )
        names = {id(p): name for name, p in model.named_parameters()}
        for group in groups:
            (parameter,) = group['params']
            name = group['param_name'] = names[id(parameter)]
            below = 0
            for prefix, backbone in backbones:
                depth, layers = backbone.get_layer_depth(name, prefix)
                below = max(below, layers - 1 - depth)
            group['lr_scale'] = self.rate**below
            group['lr'] = group.get('lr', self.base_lr) * group['lr_scale']
        lowest = min(group['lr_scale'] for group in groups)
        print_log(
            f'Layer-wise decay by {self.rate}: learning rates from '
            f'{lowest:.3g} of the full one up.',
            logger='current',
        )
