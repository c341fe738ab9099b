# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""A cache of small tensors that depend only on sizes.

On a GPU an axis of coordinates needs as many kernel launches as an attention,
and every step needs the same axes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .custom_op import is_compiling, is_exporting, is_transformed

# Limits: the number of cached tensors, the latest first, and the elements of
# one.
MAX_CONSTANTS = 512
MAX_ELEMENTS = 2**18

Kept = MutableMapping[tuple, tuple[Tensor, int]]
_kept: Kept = OrderedDict()
# Fake tensors belong to the mode that made them.
_kept_fakes: 'WeakKeyDictionary[Any, Kept]' = WeakKeyDictionary()
_lock = threading.Lock()


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator that caches the results of a function of plain arguments.

    Args:
        make: Takes numbers and strings, and a device as last argument. Its
            results must not be changed in place.
    """

    @wraps(make)
    def made(*args: Any) -> Tensor:
        if is_compiling():
            return make(*args)
        kept = _place(args)
        if kept is None:
            return make(*args)
        key = make, *((type(arg), arg) for arg in args), _stream(args[-1])
        with _lock:
            found = kept.get(key)
        # A result that was changed in place is made again.
        if found is not None and found[0]._version == found[1]:
            return found[0]
        with torch.inference_mode(False), torch.no_grad():
            out = make(*args)
        if out.numel() <= MAX_ELEMENTS:
            with _lock:
                kept[key] = out, out._version
                while len(kept) > MAX_CONSTANTS:
                    kept.pop(next(iter(kept)))
        return out

    return made


def _place(args: tuple) -> Kept | None:
    """The cache to use now; None for no cache.

    There is none while a trace or a transform records operations, or while a
    CUDA graph is captured, whose memory may be freed.
    """
    plain = (int, float, str, bool, torch.device, torch.dtype)
    if (
        any(type(arg) not in plain for arg in args)
        or is_exporting()
        or is_transformed()
        or _is_capturing(args[-1])
    ):
        return None
    modes = _get_current_dispatch_mode_stack()
    names = [type(mode).__name__ for mode in modes]
    if {'ProxyTorchDispatchMode', 'FunctionalTensorMode'} & {*names}:
        return None
    fakes = [m for m, n in zip(modes, names) if n == 'FakeTensorMode']
    if not fakes:
        return _kept
    with _lock:
        return _kept_fakes.setdefault(fakes[-1], OrderedDict())


def _is_capturing(device: torch.device) -> bool:
    return (
        device.type == 'cuda'
        and torch.cuda.is_initialized()
        and torch.cuda.is_current_stream_capturing()
    )


def _stream(device: torch.device) -> int:
    """The queue whose order says that a constant is ready to be read."""
    if device.type == 'cuda' and torch.cuda.is_initialized():
        return torch.cuda.current_stream(device).cuda_stream
    return 0
