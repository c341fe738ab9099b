# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reading training checkpoints as data with PyTorch before 2.6.

The safe reader of these versions accepts tensors but not the logs and numbers
that a training saves with them, and has no list of allowed types. Here
Python's unpickler reads the pickle inside the file. It accepts what torch's
safe reader accepts and the given types, and nothing else. Torch still makes
the tensors.
"""

import pickle
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from mmengine.utils import digit_version
from torch import _weights_only_unpickler

# The first version that can allow a type under another name.
FIRST_ABLE = '2.6.0'


def is_old() -> bool:
    """Whether torch's own reader is too limited."""
    return digit_version(torch.__version__) < digit_version(FIRST_ABLE)


def read(path: Path, map_location: Any, types: list[Any]) -> Any:
    """Reads a file that ``torch.save`` wrote.

    Args:
        path: The file.
        map_location: As in ``torch.load``.
        types: What may be in it besides tensors, as for
            ``torch.serialization.add_safe_globals``: types and functions, or
            pairs of one and the name it has in files.

    Raises:
        UnpicklingError: The file asks for something else.
    """
    with path.open('rb') as file:
        is_zip = file.read(4) == b'PK\x03\x04'
    if not is_zip:  # the format before PyTorch 1.6
        return torch.load(path, map_location=map_location, weights_only=True)
    module = SimpleNamespace(Unpickler=_unpickler(types))
    with torch.serialization._open_zipfile_reader(str(path)) as file:
        if 'constants.pkl' in file.get_all_records():
            raise pickle.UnpicklingError('a program in TorchScript')
        return torch.serialization._load(
            file, map_location, module, encoding='utf-8'
        )


def _bytes(text: str, encoding: str) -> bytes:
    """The one use of _codecs.encode in pickles: bytes in protocol 2."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'bytes encoded as {encoding}')
    return text.encode('latin1')


def _unpickler(types: list[Any]) -> type:
    """An unpickler that knows some names only."""
    known = dict(_weights_only_unpickler._get_allowed_globals())
    # What later ones know besides.
    known.update(
        (str(t), t) for t in (torch.bfloat16, torch.uint8, torch.bool)
    )
    known.update(
        (f'builtins.{t.__name__}', t) for t in (bytearray, complex, set)
    )
    known.update({'torch.device': torch.device, '_codecs.encode': _bytes})
    for item in types:
        if not isinstance(item, tuple):
            item = item, f'{item.__module__}.{item.__qualname__}'
        known[item[1]] = item[0]

    class Unpickler(pickle._Unpickler):
        dispatch = dict(pickle._Unpickler.dispatch)

        def find_class(self, module: str, name: str) -> Any:
            if module == '__builtin__':  # in files of protocol 2
                module = 'builtins'
            if f'{module}.{name}' not in known:
                raise pickle.UnpicklingError(
                    f'Unsupported global: GLOBAL {module}.{name}'
                )
            return known[f'{module}.{name}']

        def load_proto(self) -> None:
            super().load_proto()
            if self.proto != 2:
                raise pickle.UnpicklingError('not of protocol 2')

        def load_build(self) -> None:
            # A state may change an object of the file, but never a type or
            # function, which the whole process shares.
            if isinstance(self.stack[-2], type | FunctionType):
                raise pickle.UnpicklingError('a state for what is no data')
            super().load_build()

        dispatch[pickle.PROTO[0]] = load_proto
        dispatch[pickle.BUILD[0]] = load_build

    return Unpickler
