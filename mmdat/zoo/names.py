# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Names of models: in timm's form, in the arch zoo, and of files."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch

from ..models.arch import ARCH_ZOO
from ..utils.errors import SettingError

_SIZES = {'t': 'tiny', 's': 'small', 'b': 'base'}


def _long(arch: str) -> str:
    """Maps ``'dat_pp_b_384'`` to ``'dat_pp_base_384'``."""
    return re.sub(r'_([tsb])(?=_|$)', lambda m: f'_{_SIZES[m[1]]}', arch)


#: Architectures, by their name in timm's form.
NAMES: dict[str, str] = {_long(arch): arch for arch in ARCH_ZOO}


def list_models(
    filter: str | Sequence[str] = '',
    exclude_filters: str | Sequence[str] = '',
) -> list[str]:
    """Lists the names of all models.

    Args:
        filter: Patterns such as ``'dat_pp_*'``; a listed name matches at
            least one. Without patterns, all names are listed.
        exclude_filters: Patterns; a listed name matches none of them.
    """

    def matches(name: str, patterns: str | Sequence[str]) -> bool:
        listed = [patterns] if isinstance(patterns, str) else patterns
        return any(fnmatch(name, p) for p in listed if p)

    return sorted(
        name
        for name in NAMES
        if (not filter or matches(name, filter))
        and not matches(name, exclude_filters)
    )


def arch_of(name: str) -> str:
    """Returns the architecture of a model name.

    Args:
        name: A name of ``list_models``, of the arch zoo (``'dat_t'``) or of
            a released classifier (``'dat_tiny_in1k_224'``).

    Raises:
        SettingError: There is no such model; the message suggests a similar
            name.
    """
    plain = name.lower().replace('-', '_') if isinstance(name, str) else ''
    plain = re.sub(r'(_in1k)?(_224)?$', '', plain.replace('_in1k_', '_'))
    if plain in NAMES:
        return NAMES[plain]
    if plain in ARCH_ZOO:
        return plain
    close = get_close_matches(plain, [*NAMES, *ARCH_ZOO], 1, 0.5)
    nearest = f'; a similar name is {close[0]}' if close else ''
    raise SettingError(
        f'The name of a model must be one of {", ".join(list_models())}; got '
        f'{name!r}{nearest}.'
    )


def describe(arch: str) -> str:
    """Returns the name of an architecture in timm's form."""
    return _long(arch)
