# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Passes that compilers take as operators of one piece.

Operators of torch.library are opaque to torch.compile, so that a model
compiles into one graph. Otherwise the functions are called as they are: the
first call of such an operator imports PyTorch's compiler, which takes two
seconds and 130 MB. Older versions of PyTorch have no operators of one's own;
there a backend that needs them declines, or keeps more for the backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode

HAS_OPERATORS = hasattr(torch.library, 'custom_op')


def leaves_the_house() -> bool:
    """Whether a graph is being made for others, who know no such operators."""
    if torch.compiler.is_dynamo_compiling():  # says that it is exporting
        return False
    exporting = getattr(torch.compiler, 'is_exporting', bool)
    return torch.jit.is_tracing() or exporting()


def is_recorded() -> bool:
    """Whether operations are counted, recorded or replaced as they run."""
    return (
        not torch.compiler.is_compiling()
        and _get_current_dispatch_mode() is not None
    )


def is_watched() -> bool:
    """Whether someone wants to see operators instead of what they do."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_recorded()
    )


class Operator:
    """A function of tensors, one operator to those who watch.

    Args:
        name: The operator is ``mmdat::name``.
        function: What it does; annotated, for the operator's schema.
    """

    def __init__(self, name: str, function: Callable) -> None:
        self.function = function
        self.registered: Any = None
        self.differentiable: type[torch.autograd.Function] | None = None
        if HAS_OPERATORS:
            self.registered = torch.library.custom_op(
                f'mmdat::{name}', function, mutates_args=()
            )

    def __call__(self, *args: Any) -> Any:
        """Calls the function in the way that suits."""
        if self.registered is not None and is_watched():
            return self.registered(*args)
        if self.differentiable is not None and torch.is_grad_enabled():
            return self.differentiable.apply(*args)
        return self.function(*args)


def operator(name: str) -> Callable[[Callable], Operator]:
    """Decorator that makes a function an :class:`Operator`."""
    return partial(Operator, name)


def connect(
    forward: Operator,
    backward: Operator,
    *,
    empty: Callable,
    empty_backward: Callable,
    save: Callable,
    differentiate: Callable,
) -> None:
    """Makes an operator the backward pass of another.

    Args:
        forward: The operator.
        backward: Its backward pass.
        empty: What `forward` returns, not yet filled, from its arguments.
        empty_backward: The same for `backward`.
        save: Keeps what is needed, given the context, all arguments and the
            output, as ``torch.autograd.Function.setup_context`` does.
        differentiate: Given the backward pass to call, the context and the
            gradients of the outputs, returns those of the arguments.
    """
    forward.differentiable = type(
        f'{forward.function.__name__}_function',
        (torch.autograd.Function,),
        dict(
            forward=staticmethod(forward.function),
            setup_context=staticmethod(save),
            backward=staticmethod(
                once_differentiable(partial(differentiate, backward.function))
            ),
        ),
    )
    if HAS_OPERATORS:
        forward.registered.register_fake(empty)
        backward.registered.register_fake(empty_backward)
        forward.registered.register_autograd(
            partial(differentiate, backward.registered), setup_context=save
        )
