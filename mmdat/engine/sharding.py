# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Sharded training of DAT (FSDP), as strategies of mmengine.

Importing this module registers the strategies. ``tools/train.py`` runs configs
with a ``strategy`` with mmengine's FlexibleRunner. See docs/large_scale.md.
"""

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.device import get_device
from mmengine.model import MMFullyShardedDataParallel
from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..models.block import Block, ConvBlock
from ..utils.errors import UserError


@FUNCTIONS.register_module(name='mmdat.blocks')
def wrap_blocks(
    module: nn.Module, recurse: bool, nonwrapped_numel: int
) -> bool:
    """FSDP wrapping policy: each block is a unit, the rest is one unit."""
    return recurse or isinstance(module, Block | ConvBlock)


@MODEL_WRAPPERS.register_module()
class DATFullyShardedDataParallel(MMFullyShardedDataParallel):
    """FSDP that shards block by block, also on a CPU.

    Args:
        module: The model.
        device_id: Index of the GPU; ignored on a CPU.
        **kwargs: Arguments of
            ``mmengine.model.MMFullyShardedDataParallel``. By default each
            block is a unit and ``use_orig_params`` is true.
    """

    def __init__(
        self, module: nn.Module, device_id: Any = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault('auto_wrap_policy', wrap_blocks)
        kwargs.setdefault('use_orig_params', True)
        device = get_device()
        if device == 'cpu':
            device_id = torch.device('cpu')
        super().__init__(module=module, device_id=device_id, **kwargs)


@STRATEGIES.register_module()
class FSDP1Strategy(FSDPStrategy):
    """PyTorch's first FSDP, with checkpoints from which one process resumes.

    mmengine's ``FSDPStrategy`` saves the optimiser's state under parameter
    names, but an optimiser in one process needs parameter numbers. It also
    clips gradients by the norm of one process's shards. This class corrects
    both.

    Args:
        **kwargs: Arguments of mmengine's ``FSDPStrategy``. By default
            checkpoints are unsharded and each block is a unit.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Not 'full': it moves tensors to the CPU even if they are there, and
        # PyTorch 2.11 then crashes with a segmentation fault.
        whole = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig'),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig'),
        )
        kwargs.setdefault('state_dict_cfg', whole)
        wrapper = dict(type='DATFullyShardedDataParallel')
        kwargs.setdefault('model_wrapper', wrapper)
        super().__init__(**kwargs)

    def build_optim_wrapper(self, *args: Any, **kwargs: Any) -> Any:
        """Builds it as mmengine; clips gradients by the norm of all shards."""
        wrapper = super().build_optim_wrapper(*args, **kwargs)
        if getattr(wrapper, 'clip_func', None) is nn.utils.clip_grad_norm_:
            wrapper.clip_func = self._clip
        return wrapper

    def _clip(
        self, _: Any, max_norm: float, norm_type: float = 2.0, **__: Any
    ) -> torch.Tensor:
        return self.model.clip_grad_norm_(max_norm, norm_type)

    def optim_state_dict(self) -> dict[str, Any]:
        """Returns the optimiser's state, unsharded if checkpoints are."""
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict(
            self.model, optimizer
        )
        return _by_number(state, optimizer, self.model)

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimiser's shards.

        Args:
            state_dict: State from ``optim_state_dict`` or from one process.
        """
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            self.model, optimizer, _by_name(state_dict, optimizer, self.model)
        )
        self.optim_wrapper.load_state_dict(state)


@STRATEGIES.register_module()
class FSDP2Strategy(FSDPStrategy):
    """PyTorch's second FSDP, ``fully_shard``, block by block.

    The first process writes unsharded checkpoints, with the names and shapes
    of a model in one process. So any number of processes can resume from them,
    with or without sharding.

    Args:
        mixed_precision: Arguments of
            ``torch.distributed.fsdp.MixedPrecisionPolicy``, such as
            ``dict(param_dtype='bfloat16')``; types are given by name.
        reshard_after_forward: Whether to free gathered parameters after the
            forward pass and gather them again for the backward pass.
        **kwargs: Arguments of mmengine's ``DDPStrategy``.
    """

    def __init__(
        self,
        *,
        mixed_precision: dict[str, str] | None = None,
        reshard_after_forward: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault('state_dict_cfg', 'full')
        super().__init__(**kwargs)
        self.mixed_precision = mixed_precision
        self.reshard_after_forward = reshard_after_forward

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        try:
            from torch.distributed.fsdp import (
                MixedPrecisionPolicy,
                fully_shard,
            )
        except ImportError as error:
            raise UserError(
                f'FSDP2Strategy needs PyTorch 2.6 or newer; this is '
                f'{torch.__version__}, so use FSDP1Strategy.'
            ) from error
        from torch.distributed.device_mesh import init_device_mesh

        device = get_device()
        world = torch.distributed.get_world_size()
        mesh = init_device_mesh(device, (world,))
        types = {
            name: getattr(torch, kind)
            for name, kind in (self.mixed_precision or {}).items()
        }
        settings: dict[str, Any] = dict(
            mesh=mesh,
            mp_policy=MixedPrecisionPolicy(**types),
            reshard_after_forward=self.reshard_after_forward,
        )
        model = model.to(device)
        for module in model.modules():
            if isinstance(module, Block | ConvBlock):
                fully_shard(module, **settings)
        return fully_shard(model, **settings)

    def model_state_dict(self) -> dict[str, Any]:
        """Returns the unsharded weights, in the first process."""
        from torch.distributed.checkpoint.state_dict import (
            get_model_state_dict,
        )

        return get_model_state_dict(self.model, options=_whole())

    def optim_state_dict(self) -> dict[str, Any]:
        """Returns the optimiser's unsharded state, as one process saves it."""
        from torch.distributed.checkpoint.state_dict import (
            get_optimizer_state_dict,
        )

        optimizer = self.optim_wrapper.optimizer
        state = get_optimizer_state_dict(
            self.model, optimizer, options=_whole()
        )
        return _by_number(state, optimizer, self.model)

    def load_model_state_dict(
        self, state_dict: dict[str, Any], *, strict: bool = False, **_: Any
    ) -> None:
        """Loads the shards from unsharded weights.

        Args:
            state_dict: Weights of a model in one process.
            strict: Whether all names must match.
        """
        from torch.distributed.checkpoint.state_dict import (
            set_model_state_dict,
        )

        set_model_state_dict(
            self.model, dict(state_dict), options=_whole(strict=strict)
        )

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the optimiser's shards from the state of one process."""
        from torch.distributed.checkpoint.state_dict import (
            set_optimizer_state_dict,
        )

        optimizer = self.optim_wrapper.optimizer
        set_optimizer_state_dict(
            self.model,
            optimizer,
            _by_name(state_dict, optimizer, self.model),
            options=_whole(),
        )


def _whole(**settings: Any) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, **settings)


def _names(optimizer: Any, model: nn.Module) -> list[str]:
    """Returns the names of parameters in the order of their numbers."""
    known = {
        id(p): name.replace('_fsdp_wrapped_module.', '')
        for name, p in model.named_parameters()
    }
    return [
        known[id(p)]
        for group in optimizer.param_groups
        for p in group['params']
    ]


def _by_name(
    state: dict[str, Any], optimizer: Any, model: nn.Module
) -> dict[str, Any]:
    """Replaces parameter numbers by names in an optimiser's state."""
    names = _names(optimizer, model)
    return dict(
        state={names[n]: values for n, values in state['state'].items()},
        param_groups=[
            {**group, 'params': [names[n] for n in group['params']]}
            for group in state['param_groups']
        ],
    )


def _by_number(
    state: dict[str, Any], optimizer: Any, model: nn.Module
) -> dict[str, Any]:
    """Replaces parameter names by numbers in an optimiser's state.

    The groups are those of the optimiser, in its order, because FSDP may
    return different ones.
    """
    numbers = {name: i for i, name in enumerate(_names(optimizer, model))}
    groups, first = [], 0
    for group in optimizer.param_groups:
        last = first + len(group['params'])
        groups.append({**group, 'params': list(range(first, last))})
        first = last
    return dict(
        state={
            numbers[name]: values for name, values in state['state'].items()
        },
        param_groups=groups,
    )
