# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Whether a checkpoint fits a model, and the sentence for when it does not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..utils.errors import UserError
from . import released
from .identify import Identity, identify


@dataclass(frozen=True)
class Misfit:
    """Where a checkpoint and a model disagree, by name of entry.

    Attributes:
        missing: Entries of the model that the checkpoint lacks.
        unexpected: Entries of the checkpoint that the model lacks.
        reshaped: Entries that both have, of different shapes.
        unusable: Entries that cannot be copied, as they are no tensors or
            such of another kind.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    def within(self, prefix: str) -> 'Misfit':
        """The part of it whose names start with `prefix`."""
        return Misfit(
            *(
                tuple(name for name in names if name.startswith(prefix))
                for names in (
                    self.missing,
                    self.unexpected,
                    self.reshaped,
                    self.unusable,
                )
            )
        )

    @property
    def is_fatal(self) -> bool:
        """Whether parameters of the model would stay random."""
        return bool(self.missing or self.reshaped or self.unusable)

    def __str__(self) -> str:
        """E.g. ``3 entries have another shape (a, b, ...), ...``."""
        parts = (
            (self.reshaped, 'of another shape'),
            (self.missing, 'missing'),
            (self.unexpected, 'unexpected'),
            (self.unusable, 'no tensor that can be copied'),
        )
        return ', '.join(
            f'{len(names)} {"entry is" if len(names) == 1 else "entries are"} '
            f'{what} ({", ".join(names[:3])}{", ..." * (len(names) > 3)})'
            for names, what in parts
            if names
        )


def load_and_compare(model: nn.Module, checkpoint: Mapping) -> Misfit:
    """Loads what fits of a checkpoint, and says what does not.

    Args:
        model: The model, on any device; on ``meta`` nothing is computed.
        checkpoint: As ``torch.load`` gives it, in mmengine's or the authors'
            layout.
    """
    try:
        model.load_state_dict(released.entries_of(checkpoint), strict=True)
    except RuntimeError as error:
        misfit = _parse(str(error))
        if misfit == Misfit():
            raise
        return misfit
    return Misfit()


def _parse(message: str) -> Misfit:
    """Reads the names out of torch's message about a state dict."""

    def listed(word: str) -> tuple[str, ...]:
        found = re.search(rf'{word} key\(s\) in state_dict: (.*)', message)
        return tuple(re.findall(r'"([^"]+)"', found[1])) if found else ()

    return Misfit(
        listed('Missing'),
        listed('Unexpected'),
        tuple(re.findall(r'size mismatch for ([^\s:]+):', message)),
        tuple(re.findall(r'parameter named "([^"]+)"', message)),
    )


def check_fits(
    source: str,
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    only: str = '',
) -> Misfit:
    """Raises UserError unless a checkpoint gives a model all its weights.

    Args:
        source: File that the checkpoint was read from.
        checkpoint: Its content.
        model: The model.
        only: Look at entries whose names start with this.

    Returns:
        What is unexpected in the file, which does no harm.
    """
    wanted = identify(model.state_dict())
    misfit = load_and_compare(model, checkpoint).within(only)
    if misfit.is_fatal:
        raise UserError(
            _sentence(source, identify(checkpoint), wanted, misfit)
        )
    return misfit


def resolution_note(
    source: str, checkpoint: Mapping[str, Any], model: nn.Module
) -> str | None:
    """What to say of a classifier that is run at another resolution.

    Its tables are resized and it works, but the number that goes with the
    file is not to be expected. Dense models run at any size.
    """
    found, wanted = identify(checkpoint), identify(model.state_dict())
    tasks = {found.task, wanted.task}
    if tasks != {'classification'} or found.img_size == wanted.img_size:
        return None
    return (
        f'{source} is {found}, the config builds {wanted}: tables of position '
        f'biases are resized, and the accuracy that is reported for the file '
        f'holds at {found.img_size} only.'
    )


def _sentence(
    source: str, found: Identity, wanted: Identity, misfit: Misfit
) -> str:
    if str(found) == str(wanted) or found.family is None:
        what = f'{source} does not fit the model that the config builds'
        if found.family is None:
            what += f': it holds {found}'
    else:
        what = f'{source} is {found}, the config builds {wanted}'
    return (
        f'{what}; {misfit}. Use the config that the file was made with, or '
        f'another file.'
    )
