# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The trained model and the pictures that come with the source tree."""

import argparse
from pathlib import Path

from ..utils.errors import UserError

PICTURE = 'demo/pictures/cat.jpg'
CONFIG = 'configs/mask_rcnn_dat_digits.py'
CHECKPOINT = 'demo/mask_rcnn_dat_digits.safetensors'


def use_demo_files(
    args: argparse.Namespace, root: Path, image: str | None = 'image'
) -> bool:
    """Fills in arguments that a command did not get.

    Args:
        args: Of the command, with ``config`` and ``checkpoint``.
        root: Folder that has ``configs/`` and ``demo/``.
        image: Name of the argument that names the picture; None if the
            command has none.

    Returns:
        Whether the model is the one in ``demo/``.

    Raises:
        UserError: They are not here; wheels leave the model out.
    """
    if image is not None and getattr(args, image) is None:
        setattr(args, image, str(_existing(root / PICTURE)))
    if args.config is not None:
        return False
    args.config = str(_existing(root / CONFIG))
    args.checkpoint = str(_existing(root / CHECKPOINT))
    return True


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f'Without arguments this command uses the model and the pictures '
            f'of the source tree, and {path} is not here; wheels leave them '
            f'out, so clone the repository, or name a picture, a config and a '
            f'checkpoint.'
        )
    return path
