# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Writing checkpoints atomically, named by their hash."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import UserError
from . import safetensors_files

SUFFIXES = ('.pth', safetensors_files.SUFFIX)
HASH_DIGITS = 8  # as OpenMMLab's and torch.hub's files have


def publish(
    state_dict: Mapping[str, Tensor], meta: Mapping[str, Any], target: Path
) -> Path:
    """Writes weights and their description.

    The same content gives the same file and name. The file is written under a
    temporary name and renamed at the end, so an interrupted run leaves no
    incomplete file.

    Args:
        state_dict: Tensors by name that share no memory.
        meta: Plain data.
        target: The file without hash; its suffix says the format.

    Returns:
        The file: ``NAME-0123abcd.pth`` for ``NAME.pth``.

    Raises:
        UserError: The suffix is not supported, or the file cannot be written.
    """
    if target.suffix not in SUFFIXES:
        raise UserError(
            f'A checkpoint to write must end in {" or ".join(SUFFIXES)}; got '
            f'{target}.'
        )
    part = target.with_name(f'.{target.stem}.{os.getpid()}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # as the user's umask has it
        if target.suffix == safetensors_files.SUFFIX:
            safetensors_files.write(part, state_dict, meta)
        else:
            with part.open('wb') as file:
                torch.save(
                    dict(meta=dict(meta), state_dict=dict(state_dict)), file
                )
        digest = _sha256(part)
        final = target.with_name(
            f'{target.stem}-{digest[:HASH_DIGITS]}{target.suffix}'
        )
        part.chmod(mode)
        part.replace(final)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f'{target} could not be written ({error}); nothing was left there.'
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return final


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
