# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Rules that settings must keep, and the sentence for one that does not."""

import math
from typing import Any


def require(condition: bool, rule: str, value: Any) -> None:
    """Raises ValueError with rule and value unless the condition holds."""
    if not condition:
        raise ValueError(f'{rule}; got {value!r}.')


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number of at least `least`; True is none."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= least
    )


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True is none."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def check_flags(**flags: Any) -> None:
    """Raises ValueError unless each is True or False."""
    for name, value in flags.items():
        require(
            isinstance(value, bool), f'{name} must be True or False', value
        )


def check_rates(**rates: Any) -> None:
    """Raises ValueError unless each is a number from 0 to 1."""
    for name, value in rates.items():
        require(
            is_number(value) and 0 <= value <= 1,
            f'{name} must lie in [0, 1]',
            value,
        )
