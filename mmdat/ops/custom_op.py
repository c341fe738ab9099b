# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Turns functions into single operators for compilers.

Operators of torch.library are opaque to torch.compile, so a model compiles
into one graph. Without a compiler the functions are called directly, because
the first call of an operator imports PyTorch's compiler, which takes two
seconds and 130 MB. PyTorch before 2.4 has no custom operators; there, backends
that need them are not supported, or store more for the backward pass.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

HAS_OPERATORS = hasattr(torch.library, 'custom_op')
is_compiling = getattr(torch.compiler, 'is_compiling', bool)
_is_tracing_code = getattr(torch.compiler, 'is_dynamo_compiling', bool)


def is_exporting() -> bool:
    """Returns whether a graph is exported to run without mmdat."""
    if _is_tracing_code():  # which also reports is_exporting
        return False
    exporting = getattr(torch.compiler, 'is_exporting', bool)
    return torch.jit.is_tracing() or exporting()


def is_recorded() -> bool:
    """Returns whether a mode counts, records or replaces operations."""
    if is_compiling():
        return False
    return _get_current_dispatch_mode() is not None or any(
        # A default device is a mode too.
        not isinstance(mode, DeviceContext)
        for mode in _get_current_function_mode_stack()
    )


def is_transformed() -> bool:
    """Returns whether torch.func or forward-mode AD transforms operations."""
    return not is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def is_watched() -> bool:
    """Returns whether a compiler, trace or mode observes the operations."""
    return is_compiling() or torch.jit.is_tracing() or is_recorded()


class Operator:
    """A function of tensors that is one operator for compilers and modes.

    Args:
        name: Name of the operator, ``mmdat::name``.
        function: The function; it needs annotations or a `schema`.
        schema: Schema of the operator, in PyTorch's notation.
    """

    def __init__(
        self,
        name: str,
        function: Callable,
        schema: str | None = None,
    ) -> None:
        self.function = function
        self.registered: Any = None
        self.differentiable: type[torch.autograd.Function] | None = None
        if HAS_OPERATORS:
            self.registered = torch.library.custom_op(
                f'mmdat::{name}', function, mutates_args=(), schema=schema
            )

    def __call__(self, *args: Any) -> Any:
        """Calls the operator if something observes it, else the function."""
        if self.registered is not None and is_watched():
            return self.registered(*args)
        if self.differentiable is not None and torch.is_grad_enabled():
            return self.differentiable.apply(*args)
        return self.function(*args)


def operator(name: str) -> Callable[[Callable], Operator]:
    """Decorator that makes a function an ``Operator``."""
    return partial(Operator, name)


def store_all(ctx: Any, inputs: Sequence[Any], output: Sequence[Any]) -> None:
    """A `setup_context` that stores tensors, settings and outputs.

    The tensors come first among the arguments; the settings after them become
    ``ctx.settings``.
    """
    tensors = _tensors(inputs)
    ctx.save_for_backward(*tensors, *output)
    ctx.settings = inputs[len(tensors) :]


class _OneByOne(torch.autograd.Function):
    """A function of tensors, computed for one sample of ``vmap`` at a time."""

    @staticmethod
    def forward(function: Callable, *args: Any) -> tuple[Tensor | None, ...]:
        """See the class."""
        return function(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Stores nothing: there are no further derivatives."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], *inputs: Any
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        """See the class."""
        outs = _stacked(
            _OneByOne.apply(
                *(
                    x.select(dim, i) if isinstance(dim, int) else x
                    for x, dim in zip(inputs, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        )
        return outs, tuple(None if x is None else 0 for x in outs)


def _stacked(
    samples: Iterable[tuple[Tensor | None, ...]],
) -> tuple[Tensor | None, ...]:
    return tuple(
        None if parts[0] is None else torch.stack(parts)
        for parts in zip(*samples, strict=True)
    )


# Autograd batches by a vmap that is older than torch.func.
_is_batched = getattr(
    torch._C._functorch, 'is_legacy_batchedtensor', lambda _: False
)


def is_of_several(grad: Tensor) -> bool:
    """Returns whether a backward pass runs for several gradients at once."""
    return is_transformed() or _is_batched(grad)


def for_each_gradient(function: Callable) -> Callable:
    """Decorator of a function of the gradient of an output, in a backward.

    Given several gradients at once (``is_grads_batched``, on which
    ``jacobian(vectorize=True)`` is built), autograd calls a backward pass
    once, under ``vmap``. What writes results in place does not support that,
    so it gets one gradient at a time.
    """

    @wraps(function)
    def call(grad: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
        if not is_of_several(grad):
            return function(grad, *args)
        if is_transformed():
            return _OneByOne.apply(function, grad, *args)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        grads = torch._remove_batch_dim(grad, level, 1, 0)
        outs = _stacked(function(one, *args) for one in grads)
        return tuple(
            x if x is None else torch._add_batch_dim(x, 0, level) for x in outs
        )

    return call


def register_backward(
    forward: Operator,
    gradients: Operator,
    *,
    fake: Callable,
    fake_backward: Callable,
    backward: Callable,
    setup_context: Callable = store_all,
    twice: bool = False,
) -> None:
    """Registers an operator as the backward pass of another.

    Args:
        forward: The operator.
        gradients: The operator that computes its gradients.
        fake: Returns empty outputs of `forward`, given its arguments.
        fake_backward: The same for `gradients`.
        backward: Returns the gradients of the arguments; takes `gradients`,
            the context and the gradients of the outputs.
        setup_context: Stores values for the backward pass; takes the context,
            all arguments and the output, as
            ``torch.autograd.Function.setup_context`` does.
        twice: Whether `backward` can be differentiated, for second
            derivatives.
    """
    run = partial(backward, for_each_gradient(gradients.function))
    forward.differentiable = type(
        f'{forward.function.__name__}_function',
        (torch.autograd.Function,),
        dict(
            forward=staticmethod(forward.function),
            setup_context=staticmethod(setup_context),
            backward=staticmethod(run if twice else once_differentiable(run)),
        ),
    )
    if forward.registered is not None:
        forward.registered.register_fake(fake)
        gradients.registered.register_fake(fake_backward)
        forward.registered.register_autograd(
            partial(backward, gradients.registered),
            setup_context=setup_context,
        )


def gradients_like(number: int) -> Callable[..., tuple[Tensor, ...]]:
    """A `fake_backward` for gradients of the first inputs.

    Args:
        number: How many inputs have a gradient; each is like its input.
    """
    return lambda grad, *inputs: tuple(
        x.new_empty(x.shape) for x in inputs[:number]
    )


def recompute_in_backward(
    forward: Operator,
    gradients: Operator,
    *,
    fake: Callable = lambda x, *_: x.new_empty(x.shape),
    twice: bool = False,
    told_needs: bool = False,
) -> None:
    """Registers a backward pass that stores only the operator's inputs.

    Args:
        forward: The operator; takes tensors, then settings; has one output.
        gradients: Computes the gradients of the tensors; takes the gradient of
            the output, then the arguments of `forward`.
        fake: See ``register_backward``; by default the output is like the
            first input.
        twice: Whether autograd can differentiate the function of `forward`,
            for second derivatives.
        told_needs: Whether the last argument of `gradients` says, for each
            tensor, if its gradient is needed.
    """

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        store_all(ctx, inputs, ())

    def backward(
        run: Callable, ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        tensors = (
            ctx.saved_tensors
        )  # with checkpointing they can be read only once
        if twice and torch.is_grad_enabled():
            grads = _gradients_with_graph(
                forward.function, tensors, ctx.settings, grad
            )
        else:
            needs = ctx.needs_input_grad[: len(tensors) * told_needs]
            grads = run(grad, *tensors, *ctx.settings, *needs)
        return *grads, *(None for _ in ctx.settings)

    register_backward(
        forward,
        gradients,
        fake=fake,
        fake_backward=lambda grad, *inputs: tuple(
            t.new_empty(t.shape) for t in _tensors(inputs)
        ),
        setup_context=setup_context,
        backward=backward,
        twice=twice,
    )


def _tensors(inputs: Sequence[Any]) -> list[Tensor]:
    return [x for x in inputs if isinstance(x, Tensor)]


def _gradients_with_graph(
    function: Callable,
    tensors: Sequence[Tensor],
    settings: Sequence[Any],
    grad: Tensor,
) -> list[Tensor | None]:
    """Computes gradients with autograd, so that they are differentiable.

    Args:
        function: A function of tensors, then settings.
        tensors: The tensors.
        settings: The settings.
        grad: Gradient of the output.
    """
    out = function(*tensors, *settings)
    wanted = [t for t in tensors if t.requires_grad]
    grads = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return [next(grads) if t.requires_grad else None for t in tensors]
