# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Registers the models with timm, in any order of imports.

``import mmdat`` must not import timm, which takes seconds, and timm has no
plugin mechanism. If timm is already imported, the models are registered
immediately. Otherwise a module finder waits for the import of ``timm.models``
and registers the models afterwards. Python's other finders locate the module.
The finder ignores all other modules and removes itself when it is done.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_AWAITED = 'timm.models'


def register_with_timm() -> None:
    """Adds the models to timm's registry, now or when timm is imported."""
    if _AWAITED in sys.modules:
        _register()
    elif not any(type(f) is _AfterTimm for f in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    try:
        import_module('mmdat.zoo.timm_dat')
    except Exception as error:  # timm must work without mmdat
        warnings.warn(
            f'timm does not get the models of mmdat, as its registry is not '
            f'what mmdat knows ({error}); use mmdat.create_model instead.'
        )


class _AfterTimm(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Finds ``timm.models`` and registers the models after its import."""
        if fullname != _AWAITED:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, 'find_spec', None)
            if finder is self or find is None:
                continue
            spec = find(fullname, path, target)
            if spec is not None:
                self._follow(spec)
                return spec
        return None

    def _follow(self, spec: ModuleSpec) -> None:
        run = getattr(spec.loader, 'exec_module', None)
        if run is None:
            return

        def exec_module(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        spec.loader.exec_module = exec_module
