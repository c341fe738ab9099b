# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Making ``pkg::config.py`` inheritance work with every OpenMMLab family."""

from importlib.util import find_spec

from mmengine.config import utils as config_utils


def setup_config_packages() -> None:
    """Corrects mmengine's table of packages that configs inherit from.

    mmengine maps ``mmseg::`` to the distribution ``mmsegmentation``, which
    the maintained fork does not have, and does not know ``mmdat::``. Both
    module names are importable, which is all mmengine needs. Nothing changes
    for a package installed under its official name.
    """
    table = config_utils.MODULE2PACKAGE
    table.setdefault('mmdat', 'mmdat')
    for module, package in list(table.items()):
        if not _is_installed(package) and _is_installed(module):
            table[module] = module


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False
