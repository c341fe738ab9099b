# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Choosing a backend, with the reasons against the others."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from .custom_op import is_transformed

ENVIRONMENT_VARIABLE = 'MMDAT_ATTN_BACKEND'
# All names that backends have; an op has some of them.
BACKEND_NAMES = ('triton', 'separable', 'sdpa', 'reference')


def runs_everywhere(*_) -> None:
    """The capability check of a backend without limits."""
    return


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: Its name for users.
        run: The implementation.
        not_supported: Given the op's arguments, why it cannot run, or
            None.
        slower: The reason why the next backend is likely faster, or None;
            ignored for a backend that was requested.
        failure: What went wrong when it was tried on this machine, or None.
            A backend that was asked for shows it by itself.
    """

    name: str
    run: Callable
    not_supported: Callable[..., str | None] = runs_everywhere
    slower: Callable[..., str | None] = runs_everywhere
    failure: Callable[..., str | None] = runs_everywhere

    def declines(self, *args, asked_for: bool = False) -> str | None:
        """The reason to use the next backend instead, or None."""
        reason = self.not_supported(*args)
        if reason is None and not asked_for:
            reason = self.slower(*args) or self.failure(*args)
        return reason


def wanted(
    asked_for: str | None = None, backends: tuple[Backend, ...] = ()
) -> str | None:
    """The name of the backend to insist on, None for a choice.

    Args:
        asked_for: A name, or None to ask ``MMDAT_ATTN_BACKEND``.
        backends: Further ones than the names that all know.

    Raises:
        ValueError: No op has a backend of that name.
    """
    source = 'backend' if asked_for else ENVIRONMENT_VARIABLE
    name = asked_for or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name not in (None, *BACKEND_NAMES, *(b.name for b in backends)):
        raise ValueError(
            f'{source} must be one of {", ".join(BACKEND_NAMES)}, or none to '
            f'choose by itself; got {name!r}.'
        )
    return name


def choose(
    op: str, backends: tuple[Backend, ...], name: str | None, *args
) -> Callable:
    """Returns the implementation that runs an op on these arguments.

    Args:
        op: Name of the op, for messages.
        backends: Candidates, the preferred first.
        name: A backend to insist on. None asks the environment variable
            ``MMDAT_ATTN_BACKEND``, which ops without a backend of that name
            pass over, and then takes the first that does not decline.
        *args: The op's arguments, shown to the capability checks.

    Raises:
        ValueError: The wanted backend declines; the message is its reason.
            Or no op has a backend of that name.
    """
    name = wanted(name, backends)
    if name is None and is_transformed():
        name = 'reference'  # torch.func supports plain operations
    asked_for = [b for b in backends if b.name == name]
    why_not = []
    for backend in asked_for or backends:
        reason = backend.declines(*args, asked_for=len(asked_for) > 0)
        if reason is None:
            return backend.run
        why_not.append(f'{backend.name}: {reason}')
    raise ValueError(f'No backend can run {op} here. {" ".join(why_not)}')


def passed_over(backend: Backend, *args) -> str | None:
    """The reason to run layers as they are instead of a backend, or None.

    For operations with one backend, which may replace a layer.
    """
    name = wanted()
    if name not in (None, backend.name):
        return f'{name} was requested.'
    return backend.declines(*args, asked_for=name is not None)


# For each op its backends, and the function that makes their arguments.
_ops: dict[Callable, tuple[tuple[Backend, ...], Callable[..., tuple]]] = {}


def explainable(
    op: Callable,
    backends: tuple[Backend, ...],
    arguments: Callable[..., tuple],
) -> None:
    """Makes ``explain`` know an op.

    Args:
        op: The op.
        backends: Its backends, the preferred first.
        arguments: Makes what they take of what the op takes.
    """
    _ops[op] = backends, arguments


def explain(op: Callable, *args, **kwargs) -> dict[str, str | None]:
    """The reason why each backend of an op is not used.

    Args:
        op: An op of ``mmdat.ops`` that has backends.
        *args: The arguments of the op.
        **kwargs: The same, without ``backend``.

    Returns:
        For each backend, in order of preference, a reason or None. The first
        backend with None would run.

    Raises:
        ValueError: `op` has no backends.

    Examples:
        >>> import torch
        >>> from mmdat import ops
        >>> q = k = v = torch.rand(1, 4, 6, 2, 8)
        >>> ops.explain(ops.deformable_attention, q, k, v)['sdpa'] is None
        True
    """
    if op not in _ops:
        names = ', '.join(sorted(known.__name__ for known in _ops))
        raise ValueError(
            f'explain takes an op that has backends, one of {names}; got '
            f'{op!r}.'
        )
    backends, arguments = _ops[op]
    taken = arguments(*args, **kwargs)
    return {b.name: b.declines(*taken) for b in backends}
