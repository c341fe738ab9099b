# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What ``torch.fx.symbolic_trace`` sees of a model.

It calls ``forward`` with a placeholder, which has neither sizes nor values.
Modules whose way depends on these become one node of the graph each, which
calls the module itself, so that a graph computes what the model computes.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy


def is_symbolic(x: Any) -> bool:
    """Whether it stands for a tensor while a graph is made."""
    return isinstance(x, Proxy)


def one_node(
    forward: Callable[[Any, Tensor], Tensor],
) -> Callable[[Any, Tensor], Tensor]:
    """Decorator of a ``forward`` that is one node of a symbolic trace."""

    @wraps(forward)
    def call(self: nn.Module, x: Tensor) -> Tensor:
        if is_symbolic(x):
            path = x.tracer.path_of_module(self)
            return x.tracer.create_proxy('call_module', path, (x,), {})
        return forward(self, x)

    return call
