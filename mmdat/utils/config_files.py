# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The folder of the configs of this package."""

from difflib import get_close_matches
from pathlib import Path

from .errors import UserFileNotFoundError

_PACKAGE = Path(__file__).resolve().parents[1]


def config_folder() -> Path | None:
    """The folder of the configs, None where they were not installed.

    A wheel has them in ``mmdat/.mim``, the source tree beside ``mmdat``.
    """
    for folder in (_PACKAGE.parent / 'configs', _PACKAGE / '.mim/configs'):
        if (folder / '_base_' / 'models' / 'mask_rcnn_dat.py').is_file():
            return folder
    return None


def config_path(name: str) -> str:
    """The path of a config of this package, for configs that inherit it.

    Args:
        name: Such as ``'mask_rcnn_dat_t_coco'``, with or without ``.py``.

    Raises:
        UserFileNotFoundError: There is no config of this name.

    Examples:
        In a config of any project, for any ``tools/train.py``:

        >>> _base_ = __import__('mmdat').config_path('mask_rcnn_dat_t_coco')
    """
    folder = config_folder()
    if folder is None:
        raise UserFileNotFoundError(
            f'The configs of mmdat are not installed beside {_PACKAGE}; '
            f'install it from its tree or as a wheel.'
        )
    stem = Path(name).name.removesuffix('.py')
    path = folder / f'{stem}.py'
    if path.is_file():
        return str(path)
    known = sorted(one.stem for one in folder.glob('*.py'))
    # MMDetection would write mask-rcnn_dat-t_fpn_1x_coco.
    plain = stem.replace('-', '_').replace('_fpn', '').replace('_1x', '')
    close = get_close_matches(plain, known, 3) or known[:3]
    raise UserFileNotFoundError(
        f'There is no config {name} in {folder}; it has {", ".join(close)} '
        f'and others.'
    )
