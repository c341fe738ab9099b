# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Running for CUDA where there is no GPU, by tensors without memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmdat.models import stock


@contextmanager
def fake_cuda(**kwargs) -> Iterator[FakeTensorMode]:
    """Tensors made in here may be on ``'cuda'``, and have no memory.

    PyTorch asks for a GPU before autocast and in its engine for gradients:
    the first is told that there is one, the second replaced by
    :func:`gradients`.
    """
    with (
        mock.patch('torch.cuda.is_bf16_supported', lambda *_, **__: True),
        mock.patch(
            'torch.cuda.amp.common.amp_definitely_not_available', lambda: False
        ),
        mock.patch('torch.autograd.grad', gradients),
        # There are no values; PyTorch 2.15 draws again until they fit.
        mock.patch('torch.nn.init.trunc_normal_', lambda x, *_, **__: x),
        # To models tensors and attention are like any other, as on a GPU.
        mock.patch.object(stock, 'PLAIN', (*stock.PLAIN, FakeTensor)),
        mock.patch.dict(
            stock._FUNCTIONS, {(F, 'scaled_dot_product_attention'): _attention}
        ),
        mock.patch.object(F, 'scaled_dot_product_attention', _attention),
        FakeTensorMode(allow_non_fake_inputs=True, **kwargs) as mode,
    ):
        yield mode


def _order(roots: Sequence) -> list:
    """Nodes of an autograd graph, each before those it leads to."""
    done, order, stack = set(), [], [(node, False) for node in roots]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
        elif node not in done:
            done.add(node)
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n]
    return order[::-1]


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    allow_unused: bool = False,
    **_,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad``, node by node on this thread."""
    outputs, inputs = (
        [x] if isinstance(x, Tensor) else list(x) for x in (outputs, inputs)
    )
    if grad_outputs is None:
        grad_outputs = [torch.ones_like(x) for x in outputs]
    elif isinstance(grad_outputs, Tensor):
        grad_outputs = [grad_outputs]
    slots: dict = {}

    def add(node, place, grad):
        if node is not None and grad is not None:
            to = node._input_metadata[place]
            grad = grad.sum_to_size(to.shape).to(to.dtype)
            at = slots.setdefault(node, {})
            at[place] = at[place] + grad if place in at else grad

    def place_of(x):
        edge = torch.autograd.graph.get_gradient_edge(x)
        return edge.node, edge.output_nr

    # By which checkpoints know that they have recomputed for this pass.
    this_pass = mock.patch(
        'torch._C._current_graph_task_id', lambda: id(slots)
    )
    wanted = [place_of(x) for x in inputs]
    for x, grad in zip(outputs, grad_outputs, strict=True):
        if x.requires_grad:
            add(*place_of(x), grad)
    with torch.no_grad(), this_pass:
        for node in _order([place_of(x)[0] for x in outputs]):
            got = slots.get(node)
            if got is None or not node.next_functions:
                continue
            made = _differentiate(node, got)
            for (after, place), grad in zip(
                node.next_functions, made, strict=True
            ):
                add(after, place, grad)
    found = [slots.get(node, {}).get(place) for node, place in wanted]
    assert allow_unused or None not in [type(x) and x for x in found]
    return tuple(found)


def _differentiate(node, got: dict[int, Tensor]) -> tuple:
    """What a node makes of the gradients of some of its outputs."""
    outputs = node._input_metadata
    grads = [got.get(i) for i in range(len(outputs))]
    written_in_python = hasattr(node, 'apply')
    if written_in_python:
        grads = [
            torch.zeros(to.shape, dtype=to.dtype, device=to.device)
            if grad is None
            else grad
            for grad, to in zip(grads, outputs, strict=True)
        ]
    made = node.apply(*grads) if written_in_python else node(*grads)
    made = list(made) if isinstance(made, tuple | list) else [made]
    # Functions in Python answer for arguments too that are no tensors, to
    # which no edge leads.
    for place, (after, _) in enumerate(node.next_functions):
        while (
            after is not None
            and made[place] is None
            and len(made) > len(node.next_functions)
        ):
            del made[place]
    return tuple(made[: len(node.next_functions)])


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Fused attention as PyTorch takes it on a GPU for a bias."""
    keys = k.shape[2]
    if attn_mask is not None:
        with Recorded.pause():
            attn_mask = F.pad(attn_mask, (0, -keys % 16))[..., :keys]
        attn_mask = attn_mask.expand(*q.shape[:3], keys)
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        *(q, k, v, attn_mask),
        torch.is_grad_enabled(),
        *(dropout_p, is_causal),
        scale=scale,
    )[0]


# Return their argument, take memory and launch nothing, or are counted with
# what they are part of.
_FREE = ('alias', 'detach', '_unsafe_view', 'lift_fresh', 'empty_like')
# Answer with numbers for the host, or with as many as they find.
_WAIT = ('_local_scalar_dense', 'nonzero', 'masked_select', '_unique2')


class Recorded(TorchDispatchMode):
    """Counts operations that compute, and those that wait for the host.

    Attributes:
        counts: How often each ran, by name, views aside.
        weight_casts: How many of them are casts of parameters.
        waits: Those that bring something from the host or to it.
    """

    paused = False

    @classmethod
    @contextmanager
    def pause(cls) -> Iterator[None]:
        """For what is part of an operation that is counted once."""
        with mock.patch.object(cls, 'paused', True):
            yield

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.weight_casts = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """See the base class."""
        kind, name = func._schema.name.split('::')
        try:
            out = func(*args, **(kwargs or {}))
        except RuntimeError:  # fake tensors have no values to answer with
            self.waits.append(name)
            raise
        is_view = any(
            r.alias_info and not r.alias_info.is_write
            for r in func._schema.returns
        )
        free = is_view or name in _FREE or self.paused
        if kind != 'prim' and not free:
            self.counts[name] += 1
            self.weight_casts += name == '_to_copy' and isinstance(
                args[0], Parameter
            )
        tensors = [
            x
            for x in tree_flatten((args, kwargs, out))[0]
            if isinstance(x, Tensor)
        ]
        devices = {
            x.device.type for x in tensors if x.ndim or name == '_to_copy'
        }
        if name in _WAIT or len(devices) > 1:
            self.waits.append(f'{name} of {[tuple(x.shape) for x in tensors]}')
        return out
