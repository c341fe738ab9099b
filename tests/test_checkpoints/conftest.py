# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest

from mmdat.checkpoints import old_torch


@pytest.fixture(
    params=['as it is'] if old_torch.is_old() else ['as it is', 'before 2.6']
)
def torch_version(request, monkeypatch):
    """Files are read as with this PyTorch, and as with an older one."""
    if request.param != 'as it is':
        monkeypatch.setattr(old_torch, 'is_old', lambda: True)
