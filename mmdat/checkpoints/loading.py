# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Reading checkpoint files as data, never running what a pickle asks for."""

import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from ..utils.errors import UserError, UserFileError, UserFileNotFoundError
from . import old_torch, safetensors_files
from .released import unwrap

# Makes torch.load refuse code wherever it is called.
_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
# Bytes by which the members of a zip may exceed its size.
_SLACK = 1 << 20

# How files of other formats begin, in lower case.
_OTHER_FORMATS = {
    b'\x89hdf': 'a file of HDF5',
    b'gguf': 'a file of GGUF',
    b'\x1f\x8b': 'a file that gzip has packed',
    b'\x93numpy': 'an array of NumPy',
}


class _Settings:
    """Stands for yacs' CfgNode, a dict, in files of the DAT training code.

    Torch's safe reader fills only dicts of its own types.
    """

    def __new__(cls) -> OrderedDict:
        return OrderedDict()


def _harmless_types() -> list[Any]:
    """What training checkpoints carry besides tensors."""
    # numpy 1.26 has an empty _core.
    core = np.core if np.__version__.startswith('1.') else np._core
    numbers = {type(np.dtype(c)) for c in '?bBhHiIlLqQefdU'}
    return [
        HistoryBuffer,
        slice,
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
        (core.multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
        (core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
        # A file of numpy 2, read with numpy 1.
        (core.multiarray._reconstruct, 'numpy._core.multiarray._reconstruct'),
        (core.multiarray.scalar, 'numpy._core.multiarray.scalar'),
        *numbers,
        (_statistic, 'builtins.getattr'),
        (_Settings, 'yacs.config.CfgNode'),
    ]


def _statistic(owner: Any, name: str) -> Any:
    """The one use of getattr in pickles of mmengine's logs."""
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    raise UnpicklingError(f'Unsupported global: GLOBAL getattr of {name}')


def _read(path: Path, map_location: Any) -> Any:
    if path.suffix == safetensors_files.SUFFIX:
        return safetensors_files.read(path, map_location)
    _check_sums(path)
    if old_torch.is_old():
        return old_torch.read(path, map_location, _harmless_types())
    with torch.serialization.safe_globals(_harmless_types()):
        return torch.load(path, map_location=map_location, weights_only=True)


def _check_sums(path: Path) -> None:
    """Raises ValueError if a part of the file is not what was written.

    Each part has a checksum that torch writes but does not check, so torch
    would read a damaged tensor without an error.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            total = sum(member.file_size for member in file.infolist())
            stored = path.stat().st_size
            # Torch stores members as they are.
            if total > 2 * stored + _SLACK:
                raise ValueError(
                    f'its members claim {total} bytes and it has {stored}'
                )
            damaged = file.testzip()
        if damaged is not None:
            raise ValueError(f'wrong checksum of {damaged}')


def load_checkpoint_file(
    filename: str | os.PathLike, map_location: Any = None
) -> Mapping[str, Any]:
    """Reads a checkpoint from disk.

    Args:
        filename: A file that ``torch.save`` wrote, or a ``.safetensors`` file.
        map_location: As in ``torch.load``.

    Returns:
        The saved content. For a ``.safetensors`` file, ``state_dict`` holds
        the tensors and ``meta`` their description.

    Raises:
        UserError: The file does not exist, is not a checkpoint, or asks to run
            code while it is read.
    """
    path = _find(filename)
    if path.is_dir():
        raise UserFileError(
            f'A checkpoint must be a file; {path} is a folder, so name a '
            f'file in it.'
        )
    if not path.exists():
        raise UserFileNotFoundError(
            f'There is no checkpoint {filename} (looked for '
            f'{path.absolute()}); check the path or download the file first.'
        )
    if not path.is_file():
        raise UserFileError(
            f'A checkpoint must be a file; {path} is a pipe or device, so '
            f'name a file.'
        )
    if path.stat().st_size == 0:
        raise UserError(
            f'{path} is empty, not a checkpoint; download or copy it again.'
        )
    try:
        content = _read(path, map_location)
    except UserError:
        raise
    except Exception as error:  # a damaged file can cause any error
        raise UserError(_why_not(path, error)) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f'A checkpoint must hold weights by name; {path} holds a '
            f'{type(content).__name__}, so save a state dict instead.'
        )
    names = (*content, *unwrap(content))
    odd = [name for name in names if not isinstance(name, str)]
    if odd:
        raise UserError(
            f'A checkpoint must hold weights by name; {path} has an entry '
            f'{odd[0]!r:.40}, so save a state dict instead.'
        )
    strange = [name for name in names if not name.isprintable()]
    if strange:
        raise UserError(
            f'Names of weights are plain text; {path} has an entry '
            f'{strange[0]!r:.60}, so get it from a source you trust.'
        )
    return content


def _find(filename: str | os.PathLike) -> Path:
    """The path of a file, if it is a valid one.

    Raises:
        UserFileNotFoundError: No file can have that name.
    """
    try:
        path = Path(filename).expanduser()
        os.stat(path)
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error).rstrip('.')
        raise UserFileNotFoundError(
            f'There is no checkpoint {str(filename)!r:.200} ({reason}); check '
            f'the path.'
        ) from error
    return path


def _why_not(path: Path, error: Exception) -> str:
    """The sentence for a file that the safe reader refuses."""
    with path.open('rb') as file:
        start = file.read(256)
    text = start.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    # The length that a safetensors file begins with may be a '<' as well.
    if re.match(rb'<[a-z!?/]', text):
        return (
            f'{path} is a web page, not a checkpoint: the download gave its '
            f"site's page instead of the file; download it in a browser."
        )
    if text.startswith(b'version https://git-lfs'):
        return (
            f'{path} is a pointer of Git LFS, not the checkpoint; run "git '
            f'lfs pull" in its repository.'
        )
    if 'deserialize object on' in str(error):
        return (
            f'{path} is to be read to a device that this machine lacks '
            f"({_first_line(error)}); read it with map_location='cpu'."
        )
    asked = re.search(
        r'(?i)\b(?:GLOBAL|Unsupported class) (\w\S*\w)', str(error)
    )
    if asked:
        return (
            f'{path} asks to run {asked[1]} while it is read, which weights '
            f'never need, so the file was refused and nothing was run; get '
            f'it from a source you trust and save its tensors only.'
        )
    other = _other_format(path, text)
    if other is not None:
        return (
            f'{path} is not a checkpoint that torch.save wrote, or it is '
            f'damaged (it looks like {other}); give a .pth or .safetensors '
            f'file of the weights.'
        )
    writer = 'torch.save'
    if path.suffix == safetensors_files.SUFFIX:
        writer = 'safetensors'
    return (
        f'{path} is not a checkpoint that {writer} wrote, or it is damaged '
        f'({_first_line(error)}); download or copy it again.'
    )


def _other_format(path: Path, start: bytes) -> str | None:
    """What a file is that others read, by its name or beginning."""
    if start.startswith(b'{') and path.name.endswith('.index.json'):
        return 'the index of a checkpoint in several files'
    if zipfile.is_zipfile(path):
        names: list[str] = []
        with suppress(Exception), zipfile.ZipFile(path) as file:  # damaged
            names = file.namelist()
        if any(name.endswith('/constants.pkl') for name in names):
            return 'a program in TorchScript'
        if names and all(name.endswith('.npy') for name in names):
            return 'arrays of NumPy'
        return None
    for beginning, name in _OTHER_FORMATS.items():
        if start.startswith(beginning):
            return name
    return 'an ONNX model' if path.suffix == '.onnx' else None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].split('. ')[0]
    return line if len(line) <= 120 else f'{line[:117]}...'


def read_checkpoint(name: str, map_location: Any = None) -> Mapping[str, Any]:
    """Reads a checkpoint from disk, or from an address through mmengine.

    Raises:
        UserError: See [`load_checkpoint_file`][]; or the address cannot be
            read.
    """
    if '://' not in name:
        return load_checkpoint_file(name, map_location)
    with safe_loading():
        try:
            return _checkpoint_loader().load_checkpoint(name, map_location)
        except UserError:
            raise
        except Exception as error:  # of a network, or of a storage's library
            raise UserFileError(
                f'{name} cannot be read ({type(error).__name__}: '
                f'{_first_line(error)}); download the file and give its path.'
            ) from error


def _checkpoint_loader() -> Any:
    """The class of mmengine that reads checkpoints.

    It is imported only to read a file, not to build a model, because the
    maintained fork needs OpenCV for it and does not declare that.
    """
    from mmengine.runner import CheckpointLoader

    return CheckpointLoader


def use_safe_loading() -> None:
    """Makes every checkpoint that mmengine reads go through this module.

    [`load_checkpoint_file`][] reads local files. For files that mmengine
    downloads, torch is set to refuse code as well.
    """
    os.environ[_FORCE] = '1'

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return load_checkpoint_file(filename, map_location)

    _checkpoint_loader().register_scheme('', load_from_local, force=True)


@contextmanager
def safe_loading() -> Iterator[None]:
    """A context with the effect of [`use_safe_loading`][]."""
    loader, forced = _checkpoint_loader(), os.environ.get(_FORCE)
    schemes = loader._schemes
    loader._schemes = dict(schemes)
    try:
        use_safe_loading()
        yield
    finally:
        loader._schemes = schemes
        if forced is None:
            os.environ.pop(_FORCE, None)
        else:
            os.environ[_FORCE] = forced
