# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Truncated pictures, which some versions of OpenCV read in part."""

import os
from functools import lru_cache

from mmengine.utils import digit_version

# What a file ends with, by what it begins with; more may follow.
_ENDS = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG': b'IEND'}
_TAIL = 1 << 16


@lru_cache
def is_needed() -> bool:
    """Whether this OpenCV silently fills the missing part of a picture.

    Versions up to 4.10 do; 4.11 returns nothing for such a file.
    """
    try:
        import cv2
    except ImportError:
        return False
    return digit_version(cv2.__version__) < digit_version('4.11.0')


def check_whole(path: str) -> None:
    """Raises ValueError for a JPEG or PNG file without its end.

    It reads only the first and last bytes. Files of other kinds, and remote
    files, are not checked.
    """
    if not os.path.isfile(path):
        return
    with open(path, 'rb') as file:
        start = file.read(4)
        file.seek(max(os.path.getsize(path) - _TAIL, 0))
        tail = file.read()
    for magic, end in _ENDS.items():
        if start.startswith(magic) and end not in tail:
            raise ValueError('the picture is truncated: its end is missing')
