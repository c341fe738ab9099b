# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Errors of MMEngine's registries, in one sentence."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

from ..utils.errors import UserError, similar

_UNKNOWN_TYPE = re.compile(r'(\S+) is not in the (\S+?)::(.+?) registry')
_UNKNOWN_NAME = re.compile(r"unexpected keyword argument '(\w+)'")
_MISSING_NAME = re.compile(r'missing \d+ required')
_BUILDER = 'mmengine/registry/build_functions.py'
_LOOPS = 'mmengine/runner/loops.py'


@contextmanager
def one_sentence_builds(filename: str) -> Iterator[None]:
    """Turns errors about types and arguments of a config into a UserError.

    It covers what is raised before the first iteration. Errors of a running
    loop, and unexpected errors of constructors, keep their traceback.

    Args:
        filename: The config, for the message.

    Raises:
        UserError: A type is not registered, or has other arguments.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        sentence = _sentence(error)
        if isinstance(error, UserError) or sentence is None:
            raise
        raise UserError(f'{filename} cannot be built: {sentence}') from error


def _sentence(error: Exception) -> str | None:
    """Returns what is wrong with a config, None for other errors."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    files = [Path(f.f_code.co_filename).as_posix() for f in frames]
    if any(
        file.endswith(_LOOPS) and frame.f_code.co_name == 'run'
        for file, frame in zip(files, frames)
    ):
        return None
    builders = [
        frame
        for file, frame in zip(files, frames)
        if file.endswith(_BUILDER) and frame.f_code.co_name == 'build_from_cfg'
    ]
    text = str(error.args[0]) if error.args else ''
    if isinstance(error, TypeError):
        own = builders or '/mmengine/' in files[-1]
        return _about_arguments(text, builders) if own else None
    if not builders:
        return None
    if isinstance(error, KeyError):
        return _about_types(text, builders[-1])
    # An assertion of a constructor about one of its arguments.
    inner = frames[frames.index(builders[-1]) + 1 :]
    if text and all(one.f_code.co_name == '__init__' for one in inner):
        name = getattr(builders[-1].f_locals.get('obj_cls'), '__name__', '')
        return f'{name}: {" ".join(text.split()).rstrip(".")}.'
    return None


def _about_types(text: str, builder: FrameType) -> str | None:
    found = _UNKNOWN_TYPE.match(text)
    if found:
        kind, scope, what = found.groups()
        names = _names(builder.f_locals.get('registry'))
        plain = kind.rpartition('.')[2]
        return (
            f'{kind!r} is no type of {what} that {scope} has'
            f'{similar(plain, names)}; correct it, or import the module '
            f'that registers it in custom_imports.'
        )
    if 'must contain the key "type"' in text:
        settings = builder.f_locals.get('cfg')
        return f'{dict(settings or {})!r:.200} needs a type.'
    return None


def _names(registry: Any) -> list[str]:
    """Returns the types of a registry and of those around it."""
    names: list[str] = []
    while registry is not None:
        names += registry.module_dict
        registry = registry.parent
    return names


def _about_arguments(text: str, builders: list[FrameType]) -> str | None:
    found = _UNKNOWN_NAME.search(text)
    if found is None:
        return f'{text}.' if _MISSING_NAME.search(text) else None
    kind = builders[-1].f_locals.get('obj_cls') if builders else None
    known: set[str] = set()
    for one in getattr(kind, '__mro__', ()):
        if '__init__' in vars(one) and one is not object:
            known |= set(signature(one.__init__).parameters)
    return f'{text}{similar(found[1], known - {"self", "args", "kwargs"})}.'
