# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Counts multiply-adds operator by operator, without computing values."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..models import fused
from ..models.attention import (
    DeformableAttention,
    NeighborhoodAttention,
    WindowAttention,
)

aten = torch.ops.aten

# Multiply-adds of one bilinearly interpolated number: four neighbours.
BILINEAR = 4

_SAMPLERS = (
    'grid_sampler_2d',
    '_grid_sampler_2d_cpu_fallback',
    'cudnn_grid_sampler',
)
# Operators of F.scaled_dot_product_attention that torch's counter does not
# know. It knows the other ones, or sees their matrix products.
_FUSED_ATTENTION = (
    '_scaled_dot_product_flash_attention_for_cpu',
    '_scaled_dot_product_fused_attention_overrideable',
)
_PRODUCTS = ('bmm', 'baddbmm')
# Attentions with several backends.
_WITH_BACKENDS = (DeformableAttention, NeighborhoodAttention, WindowAttention)


@dataclass
class ModuleCount:
    """Multiply-adds of a module, without those of its submodules.

    Attributes:
        products: Those of attention (``q k^T`` and ``weights v``) and of other
            batched matrix products of two activations.
        layers: Those of convolutions and linear layers.
        sampling: Those of bilinear sampling, four for each sampled value, by
            the number of sampled channels.
    """

    products: int = 0
    layers: int = 0
    sampling: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def total(self) -> int:
        """The sum of all three."""
        return self.products + self.layers + sum(self.sampling.values())


class _Root(nn.Module):
    """A module that the counter can start from, whatever `run` calls."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, *inputs: Any) -> None:
        """Calls the function."""
        self.run(self.model, *inputs)


def count(
    model: nn.Module,
    shape: tuple[int, ...],
    run: Callable[[nn.Module, torch.Tensor], Any] | None = None,
    *,
    fake: bool = True,
) -> dict[str, ModuleCount]:
    """Counts the multiply-adds of a model for one input shape.

    The count includes convolutions, linear layers, matrix products, fused
    attention and bilinear sampling. As usual, it does not include norms,
    activations, softmax, additions and interpolation.

    The attentions of this package run on the reference backend, which computes
    exactly the scores of their formulas. The count of window attention
    includes the padding of the map, in projections and in products.

    Args:
        model: The model, on the CPU; this function sets it to eval mode.
        shape: Shape of the random input, e.g. (1, 3, 224, 224).
        run: Function of model and input; None calls the model.
        fake: Whether to compute only shapes, which takes a few seconds for any
            size. With False all values are computed; the count is the same.

    Returns:
        The multiply-adds of each module outside its submodules, by the name of
        the module (``''`` is the model). Modules without any are left out.
    """
    sampling: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))

    def innermost() -> str:
        # Before torch 2.4 the counter itself keeps the names of modules.
        parents = getattr(counter, 'mod_tracker', counter).parents
        return max(set(parents) - {'Global'}, key=len)

    def sampler(x: Any, *_, out_shape: Any = None, **__) -> int:
        operations = BILINEAR * prod(out_shape)
        sampling[innermost()][x[1]] += operations
        return 2 * operations

    def attention(
        q: Any, k: Any, v: Any, *_, out_shape: Any = None, **__
    ) -> int:
        return sdpa_flop_count(q, k, v)

    formulas = dict.fromkeys(_operators(_SAMPLERS), sampler)
    formulas.update(dict.fromkeys(_operators(_FUSED_ATTENTION), attention))
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    root = _Root(model, run or (lambda model, x: model(x))).eval()
    if not hasattr(counter, 'mod_tracker'):
        _follow_modules(counter, root)
    with torch.no_grad(), _by_the_formula(model):
        if fake:
            with FakeTensorMode(allow_non_fake_inputs=True), counter:
                root(torch.empty(shape))
        else:
            x = torch.rand(shape)
            with counter:
                root(x)
    return _own(counter.get_flop_counts(), sampling)


def _follow_modules(counter: FlopCounterMode, root: nn.Module) -> None:
    """Tells the counter of torch before 2.4 which module is running.

    The hooks of that counter also follow gradients. They unpack the only
    argument of a module if it is a tuple, such as the maps for a feature
    pyramid.
    """

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: counter.parents.append(name)

    def leave(name: str) -> Callable[..., None]:
        def pop(*_: Any) -> None:
            counter.parents.pop()

        return pop

    counter.mods = [root]
    counter._create_pre_module = enter
    counter._create_post_module = leave


def _operators(names: Sequence[str]) -> list[Any]:
    """Returns the operators with these names that this torch has."""
    return [getattr(aten, name) for name in names if hasattr(aten, name)]


@contextmanager
def _by_the_formula(model: nn.Module) -> Iterator[None]:
    """Makes the attentions of a model compute exactly their formulas."""
    attentions = [m for m in model.modules() if isinstance(m, _WITH_BACKENDS)]
    backends = [attention.backend for attention in attentions]
    try:
        for attention in attentions:
            attention.backend = 'reference'
        with fused.disabled():
            yield
    finally:
        for attention, backend in zip(attentions, backends):
            attention.backend = backend


def _own(
    flops: dict[str, dict[Any, int]], sampling: dict[str, dict[int, int]]
) -> dict[str, ModuleCount]:
    """Subtracts from each module the operations of its submodules."""
    flops.pop('Global', None)
    own = {name: defaultdict(int, ops) for name, ops in flops.items()}
    for name, ops in flops.items():
        parent = name.rpartition('.')[0]
        while parent and parent not in own:  # containers are never called
            parent = parent.rpartition('.')[0]
        for op, number in ops.items():
            if parent:
                own[parent][op] -= number
    counts = {}
    for name, ops in own.items():
        products = sum(
            number
            for op, number in ops.items()
            if op.__name__ in _PRODUCTS or 'attention' in op.__name__
        )
        samples = dict(sampling.get(name, {}))
        layers = sum(ops.values()) - products - 2 * sum(samples.values())
        # torch counts a multiply-add as two operations.
        module = ModuleCount(products // 2, layers // 2, samples)
        if module.total:
            counts[name.removeprefix('_Root').removeprefix('.model')[1:]] = (
                module
            )
    return counts


def total(counts: dict[str, ModuleCount]) -> int:
    """Returns the sum of the multiply-adds that [`count`][] returned."""
    return sum(module.total for module in counts.values())
