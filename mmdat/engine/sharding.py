# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Models in shards: what mmengine's strategies need for a DAT.

Registered for configs with a ``strategy``, which ``tools/train.py`` runs by
mmengine's FlexibleRunner. See docs/large_scale.md.
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
    """FSDP's policy: each block of a DAT is a unit, the rest another."""
    return recurse or isinstance(module, Block | ConvBlock)


@MODEL_WRAPPERS.register_module()
class DATFullyShardedDataParallel(MMFullyShardedDataParallel):
    """FSDP with blocks as units, on a CPU too.

    Args:
        module: The model.
        device_id: The number of the GPU; of no meaning on a CPU.
        **kwargs: As in ``mmengine.model.MMFullyShardedDataParallel``;
            blocks are units and parameters keep their form by default.
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
    """PyTorch's first FSDP, with checkpoints that one process resumes from.

    mmengine's strategy saves what belongs to a parameter in the optimiser
    under its name, where an optimiser in one process looks for its number;
    and it clips the gradients of each process by the norm of its own shards.

    Args:
        **kwargs: As in mmengine's ``FSDPStrategy``, whole checkpoints and
            blocks as units by default.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Not 'full', which moves to the CPU what may be there: PyTorch 2.11
        # ends by a segmentation fault.
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
        """As mmengine's; gradients are clipped by the norm over all shards."""
        wrapper = super().build_optim_wrapper(*args, **kwargs)
        if getattr(wrapper, 'clip_func', None) is nn.utils.clip_grad_norm_:
            wrapper.clip_func = self._clip
        return wrapper

    def _clip(
        self, _: Any, max_norm: float, norm_type: float = 2.0, **__: Any
    ) -> torch.Tensor:
        return self.model.clip_grad_norm_(max_norm, norm_type)

    def optim_state_dict(self) -> dict[str, Any]:
        """The state of the optimiser, whole if checkpoints are."""
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict(
            self.model, optimizer
        )
        return _by_number(state, optimizer, self.model)

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Fills the optimiser's shards.

        Args:
            state_dict: As ``optim_state_dict`` or one process gives it.
        """
        optimizer = self.optim_wrapper.optimizer
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            self.model, optimizer, _by_name(state_dict, optimizer, self.model)
        )
        self.optim_wrapper.load_state_dict(state)


@STRATEGIES.register_module()
class FSDP2Strategy(FSDPStrategy):
    """PyTorch's second FSDP, ``fully_shard``, block by block.

    Checkpoints are whole and written by the first process, with the names and
    shapes of a model in one process; so they resume with any number of
    processes, and without sharding.

    Args:
        mixed_precision: Types of :class:`torch.distributed.fsdp.
            MixedPrecisionPolicy`, such as ``dict(param_dtype='bfloat16')``.
        reshard_after_forward: Whether to free what was gathered for the
            forward pass before the backward pass.
        **kwargs: As in mmengine's ``DDPStrategy``.
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
                f'{torch.__version__}, so use FSDPStrategy.'
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
        """The whole model, in the first process."""
        from torch.distributed.checkpoint.state_dict import (
            get_model_state_dict,
        )

        return get_model_state_dict(self.model, options=_whole())

    def optim_state_dict(self) -> dict[str, Any]:
        """The whole state of the optimiser, as one process would save it."""
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
        """Fills the shards from a whole model.

        Args:
            state_dict: Of a model in one process.
            strict: Whether all names must fit.
        """
        from torch.distributed.checkpoint.state_dict import (
            set_model_state_dict,
        )

        set_model_state_dict(
            self.model, dict(state_dict), options=_whole(strict=strict)
        )

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Fills the optimiser's shards from the state of one process."""
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
    """Names of the parameters in the order of an optimiser's numbers."""
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
    """The state that an optimiser in one process saves, with names."""
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
    """The state with numbers in place of names, as optimisers save it.

    The groups are the optimiser's, in its order: FSDP may give others.
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
