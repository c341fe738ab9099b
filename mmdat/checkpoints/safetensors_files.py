# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checkpoints in the safetensors format, which can hold nothing but tensors.

The package ``safetensors`` is imported only when such a file is read or
written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from ..utils.errors import UserError

SUFFIX = '.safetensors'

# The description of the weights is one JSON entry of the header: the order
# of several entries, and so the hash of the file, would vary from run to run.
_META = 'mmdat'


def _package(path: Path) -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise UserError(
            f'{path} needs the package safetensors, which is not installed; '
            f'install it with pip install safetensors or use a .pth file.'
        ) from error
    return safetensors


def write(
    path: Path, state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Writes tensors by name and their description.

    Args:
        path: File to write.
        state_dict: Tensors that share no memory.
        meta: Plain data; tuples become lists.

    Raises:
        UserError: The package is not installed.
    """
    _package(path).torch.save_file(
        dict(state_dict), path, metadata={_META: json.dumps(dict(meta))}
    )


def read(path: Path, map_location: Any = None) -> dict[str, Any]:
    """Reads a file of any origin into the layout of mmengine.

    Args:
        path: File to read.
        map_location: Device, ``'meta'`` for shapes alone.

    Returns:
        ``state_dict`` and ``meta``.

    Raises:
        UserError: The package is not installed.
        ValueError: The file is damaged or something else.
    """
    package = _package(path)
    try:
        with package.safe_open(path, framework='pt', device='cpu') as file:
            meta = (file.metadata() or {}).get(_META, '{}')
            tensors = {
                name: file.get_tensor(name).to(map_location or 'cpu')
                for name in file.keys()  # noqa: SIM118, it is no dict
            }
    except package.SafetensorError as error:
        raise ValueError(str(error)) from error
    return dict(state_dict=tensors, meta=json.loads(meta))
