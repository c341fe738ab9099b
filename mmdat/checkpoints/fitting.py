# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Where a checkpoint and a model disagree."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import released


@dataclass(frozen=True)
class Misfit:
    """Where a checkpoint and a model disagree, by name of entry.

    Attributes:
        missing: Entries of the model that the checkpoint lacks.
        unexpected: Entries of the checkpoint that the model lacks.
        reshaped: Entries that both have, of different shapes.
        unusable: Entries that cannot be copied: not tensors, or tensors of
            another kind, such as sparse ones.
        unsuited: Entries of integer, complex or boolean type where the model
            has floating-point weights.
        infinite: Entries with NaN or infinity.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    unsuited: tuple[str, ...] = ()
    infinite: tuple[str, ...] = ()

    def within(self, prefix: str) -> 'Misfit':
        """The entries whose names start with `prefix`."""
        return Misfit(
            *(
                tuple(name for name in names if name.startswith(prefix))
                for names in (
                    self.missing,
                    self.unexpected,
                    self.reshaped,
                    self.unusable,
                    self.unsuited,
                    self.infinite,
                )
            )
        )

    @property
    def is_fatal(self) -> bool:
        """Whether a parameter would stay random or get an invalid value."""
        return bool(
            self.missing
            or self.reshaped
            or self.unusable
            or self.unsuited
            or self.infinite
        )

    def __str__(self) -> str:
        """E.g. ``3 entries have another shape (a, b, ...), ...``."""
        parts = (
            (self.reshaped, 'of another shape'),
            (self.missing, 'missing'),
            (self.unexpected, 'unexpected'),
            (self.unusable, 'not a tensor that can be copied'),
            (self.unsuited, 'of integer, complex or boolean type'),
            (self.infinite, 'NaN or infinite in part'),
        )
        return ', '.join(
            f'{len(names)} {"entry is" if len(names) == 1 else "entries are"} '
            f'{what} ({", ".join(names[:3])}{", ..." * (len(names) > 3)})'
            for names, what in parts
            if names
        )


def load_and_compare(model: nn.Module, checkpoint: Mapping) -> Misfit:
    """Loads the entries of a checkpoint that fit, and returns the others.

    Args:
        model: The model, on any device; on ``meta`` nothing is computed.
        checkpoint: As ``torch.load`` gives it, in mmengine's or the authors'
            layout.
    """
    entries = released.entries_of(checkpoint)
    unsuited, infinite = _odd_values(model, entries)
    misfit = Misfit()
    try:
        with warnings.catch_warnings():
            # On meta nothing is meant to be copied.
            warnings.filterwarnings(
                'ignore', 'for .*: copying from a non-meta'
            )
            model.load_state_dict(entries, strict=True)
    except RuntimeError as error:
        misfit = _parse(str(error))
        if misfit == Misfit():
            raise
    return replace(misfit, unsuited=unsuited, infinite=infinite)


def _odd_values(
    model: nn.Module, entries: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of entries that torch would copy although they are not weights.

    Infinity in a buffer is allowed; NaN is not.
    """
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    unsuited, infinite = [], []
    for name, value in entries.items():
        if not isinstance(value, Tensor):
            continue
        bare = name.removeprefix('backbone.')
        ours = (bare, released.rename(bare))
        names = (name, *ours, *(f'backbone.{one}' for one in ours))
        own = next((n for n in names if n in parameters or n in buffers), None)
        if own is None:
            continue
        trained = own in parameters
        wanted = parameters[own] if trained else buffers[own]
        if not wanted.is_floating_point():
            continue
        if not value.is_floating_point():
            unsuited.append(own)
        elif not value.is_meta and value.layout == torch.strided:
            if value.element_size() == 1:  # float8 lacks these operations
                value = value.float()
            bad = value.isnan() if not trained else ~value.isfinite()
            if bad.any():
                infinite.append(own)
    return tuple(unsuited), tuple(infinite)


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
