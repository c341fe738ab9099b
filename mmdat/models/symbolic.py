# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Support of ``torch.fx.symbolic_trace``.

The trace calls ``forward`` with a placeholder without sizes and values. A
module whose control flow depends on them becomes one node of the graph. The
node calls the module, so the graph computes the same as the model.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy


def is_symbolic(x: Any) -> bool:
    """Returns whether `x` is a placeholder of a symbolic trace."""
    return isinstance(x, Proxy)


def one_node(
    forward: Callable[[Any, Tensor], Tensor],
) -> Callable[[Any, Tensor], Tensor]:
    """Decorator that makes a ``forward`` one node of a symbolic trace."""

    @wraps(forward)
    def call(self: nn.Module, x: Tensor) -> Tensor:
        if is_symbolic(x):
            path = x.tracer.path_of_module(self)
            return x.tracer.create_proxy('call_module', path, (x,), {})
        return forward(self, x)

    return call
