# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Small tensors that depend on sizes alone, made once instead of every pass.

On a GPU an axis of coordinates takes as many launches as an attention, and a
step asks for the same ones again and again.
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

# As many are kept, the latest asked for, and none with more elements.
MAX_CONSTANTS = 512
MAX_ELEMENTS = 2**18

Kept = MutableMapping[tuple, tuple[Tensor, int]]
_kept: Kept = OrderedDict()
# Fake tensors belong to the mode that made them.
_kept_fakes: 'WeakKeyDictionary[Any, Kept]' = WeakKeyDictionary()
_lock = threading.Lock()


def constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator that remembers what a function makes of plain arguments.

    Args:
        make: Takes numbers and words, and last a device; asked for tensors
            that nobody changes.
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
        # Whoever changed it shall not change what others get.
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
    """Where to remember what is made now; None for nowhere.

    Not what a trace or a transform follows, and neither reads nor makes a
    CUDA graph anything that others may free.
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
