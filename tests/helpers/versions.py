# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Tests of what older versions of PyTorch do not have."""

import pytest
import torch
from mmengine.utils import digit_version


def has_torch(version: str) -> bool:
    """Whether this PyTorch is `version` or a newer one."""
    return digit_version(torch.__version__) >= digit_version(version)


def needs_torch(version: str) -> pytest.MarkDecorator:
    """A mark that skips tests with an older PyTorch than `version`."""
    return pytest.mark.skipif(
        not has_torch(version),
        reason=f'needs PyTorch {version}; this is {torch.__version__}',
    )
