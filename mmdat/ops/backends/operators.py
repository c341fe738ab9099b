# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Passes that PyTorch takes as operators of one piece.

Operators of torch.library are opaque to torch.compile, so that a model
compiles into one graph. Older versions of PyTorch have none; there a backend
that needs them declines, or keeps more for the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch

HAS_OPERATORS = hasattr(torch.library, 'custom_op')


def operator(name: str) -> Callable[[Callable], Callable]:
    """Registers a function as operator ``mmdat::name``, where possible."""
    if not HAS_OPERATORS:
        return lambda function: function
    return torch.library.custom_op(f'mmdat::{name}', mutates_args=())


def connect(
    forward: Any,
    backward: Any,
    *,
    empty: Callable,
    empty_backward: Callable,
    save: Callable,
    differentiate: Callable,
) -> None:
    """Makes an operator the backward pass of another, where possible.

    Args:
        forward: The operator.
        backward: Its backward pass.
        empty: What `forward` returns, not yet filled, from its arguments.
        empty_backward: The same for `backward`.
        save: Keeps what is needed, see ``torch.library.register_autograd``.
        differentiate: Calls `backward`, see the same.
    """
    if HAS_OPERATORS:
        forward.register_fake(empty)
        backward.register_fake(empty_backward)
        forward.register_autograd(differentiate, setup_context=save)
