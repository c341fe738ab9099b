# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Choosing a backend, and saying why the others were declined."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from mmengine.logging import MMLogger

ENVIRONMENT_VARIABLE = 'MMDAT_ATTN_BACKEND'


def runs_everywhere(*_) -> None:
    """The capability check of a backend without limits."""
    return


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: What the user calls it.
        run: The implementation.
        declines: Given the op's arguments, the reason why it cannot run, or
            None.
        yields: The reason why the next one is likely faster, or None; of no
            interest for a backend that was asked for.
    """

    name: str
    run: Callable
    declines: Callable[..., str | None] = runs_everywhere
    yields: Callable[..., str | None] = runs_everywhere


def check_backend_name(name: str | None, known: tuple[str, ...]) -> None:
    """Raises ValueError for a name that no op knows."""
    if name is not None and name not in known:
        raise ValueError(
            f'backend must be one of {", ".join(known)}, or None to choose by '
            f'itself; got {name!r}.'
        )


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
    """
    name = name or os.environ.get(ENVIRONMENT_VARIABLE)
    asked_for = [b for b in backends if b.name == name]
    why_not = []
    for backend in asked_for or backends:
        reason = backend.declines(*args)
        if reason is None and not asked_for:
            reason = backend.yields(*args)
        if reason is None:
            return backend.run
        why_not.append(f'{backend.name}: {reason}')
    raise ValueError(f'No backend can run {op} here. {" ".join(why_not)}')


def reasons(op: str, backends: tuple[Backend, ...], *args) -> dict:
    """Why each backend of an op is passed over, None where it would run."""
    found = {b.name: b.declines(*args) or b.yields(*args) for b in backends}
    MMLogger.get_current_instance().debug(f'{op}: {found}')
    return found
