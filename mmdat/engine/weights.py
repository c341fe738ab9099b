# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks that a checkpoint has the weights of a model."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..checkpoints.fitting import Misfit, load_and_compare
from ..checkpoints.starting import elsewhere
from ..utils.errors import UserError
from .identify import Identity, identify


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
        The unexpected entries of the file, which are harmless.
    """
    wanted = identify(model.state_dict())
    misfit = load_and_compare(model, checkpoint).within(only)
    if misfit.is_fatal:
        where = elsewhere(checkpoint)
        if where is not None:
            raise UserError(
                f'{source} does not fit the model that the config builds, as '
                f'its backbone is under other names; to start one from it '
                f'alone, {where} with --pretrained.'
            )
        raise UserError(
            _sentence(source, identify(checkpoint), wanted, misfit)
        )
    return misfit


def resolution_note(
    source: str, checkpoint: Mapping[str, Any], model: nn.Module
) -> str | None:
    """What to say of a classifier that is run at another resolution.

    The tables are adapted and the model works, but the reported accuracy of
    the file does not apply. Detectors and segmentors run at any size. Call
    this before the checkpoint is loaded, because a DAT++ then has the tables
    of the file.
    """
    found, wanted = identify(checkpoint), identify(model.state_dict())
    tasks = {found.task, wanted.task}
    if tasks != {'classification'} or found.img_size == wanted.img_size:
        return None
    about = (
        f'{source} is {found}, the config builds {wanted}: tables of position '
        f'biases are '
    )
    if found.family == 'DAT':
        return (
            f'{about}resized, and the accuracy that is reported for the file '
            f'holds at {found.img_size} only.'
        )
    return (
        f'{about}taken as they are. If the file was trained at '
        f'{found.img_size}, the accuracy that is reported for it holds at '
        f'{found.img_size} only; DAT-B++ at {wanted.img_size} may have been '
        f'released with such tables.'
    )


def classes_note(
    source: str, checkpoint: Mapping[str, Any], model: nn.Module
) -> str | None:
    """What to say of heads of other sizes, which a training starts new."""
    found, wanted = identify(checkpoint), identify(model.state_dict())
    if None in (found.classes, wanted.classes):
        return None
    if found.classes == wanted.classes:
        return None
    return (
        f'{_classes(source, found, wanted)}: what depends on their number '
        f'starts new.'
    )


def _classes(source: str, found: Identity, wanted: Identity) -> str:
    return (
        f'{source} has a head for {found.classes} classes, the config builds '
        f'one for {wanted.classes}'
    )


def _sentence(
    source: str, found: Identity, wanted: Identity, misfit: Misfit
) -> str:
    known = None not in (found.classes, wanted.classes)
    same = str(found) == str(wanted)
    if same and known and found.classes != wanted.classes:
        what = _classes(source, found, wanted)
    elif same or found.family is None:
        what = f'{source} does not fit the model that the config builds'
        if found.family is None:
            what += f': it holds {found}'
    else:
        what = f'{source} is {found}, the config builds {wanted}'
    return (
        f'{what}; {misfit}. Use the config that the file was made with, or '
        f'another file.'
    )
