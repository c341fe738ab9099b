# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Which OpenMMLab packages are installed, and whether they work together."""

import os
import platform
import sys
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from traceback import walk_tb

from mmengine.registry import init_default_scope

from .errors import UserError

# Modules with the distributions that bring them: the official one, the
# maintained fork, and what else there is.
DISTRIBUTIONS = {
    'mmengine': ('mmengine', 'onedl-mmengine', 'mmengine-lite'),
    'mmcv': ('mmcv', 'onedl-mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}
# Projects whose name is not that of their module.
_PROJECTS = {'mmdetection': 'mmdet', 'mmsegmentation': 'mmseg'}
_PAGE = 'docs/get_started.md#versions says which versions go together'


def installed(module: str) -> dict[str, str]:
    """Distributions that bring a module, with their versions."""
    found = {}
    for name in DISTRIBUTIONS[module]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def mixture(module: str) -> str | None:
    """What is wrong if two distributions have written one folder.

    pip does not know that they stand for each other. It puts the files of the
    second over those of the first, and takes them away with either.
    """
    found = installed(module)
    if len(found) < 2:
        return None
    both = ' and '.join(f'{name} {found[name]}' for name in found)
    return (
        f'{both} are both installed and share the folder {module}, so its '
        f'files may be of either; run pip uninstall -y {" ".join(found)}, '
        f'then install one of them.'
    )


def enter_scope(scope: str | None) -> None:
    """Makes a package the one whose registries are asked first.

    Args:
        scope: ``default_scope`` of a config.

    Raises:
        UserError: The package, or one that it needs, cannot be imported.
    """
    scope = scope or 'mmengine'
    check_package(scope)
    init_default_scope(scope)


@lru_cache
def check_package(scope: str) -> None:
    """Imports the models of a package, after a warning of mixed packages.

    Args:
        scope: Name of the module. Those that are not OpenMMLab's are left
            alone.

    Raises:
        UserError: It cannot be imported, with the reason and what to do.
    """
    if scope not in DISTRIBUTIONS:
        # Only names of OpenMMLab that are misspelt; a scope may be anything.
        near = get_close_matches(scope, DISTRIBUTIONS, 1, 0.8)
        near = _PROJECTS.get(scope) or (near[0] if near else None)
        if near and not _is_there(scope):
            raise UserError(
                f'default_scope must be the name of a module; there is no '
                f'{scope!r}, but {near!r}.'
            )
        return
    mixed = [text for text in map(mixture, DISTRIBUTIONS) if text]
    for text in mixed if os.environ.get('RANK', '0') == '0' else ():
        print(f'warning: {text}', file=sys.stderr, flush=True)
    try:
        import_module(scope)
        if scope != 'mmengine':
            import_module(f'{scope}.models')
    except (ImportError, AssertionError) as error:
        raise UserError(_explain(scope, error)) from error


def check_distutils() -> None:
    """Raises UserError if MMEngine's runner would not start.

    It describes the environment with the help of distutils.
    """
    if not _is_there('distutils'):
        raise UserError(
            f'mmengine needs the module distutils, which Python '
            f'{platform.python_version()} does not have and setuptools '
            f'brings; run pip install setuptools.'
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _raised_in(error: Exception) -> str | None:
    """Returns the package of OpenMMLab whose code raised an error."""
    names = [
        frame.f_globals.get('__name__', '').partition('.')[0]
        for frame, _ in walk_tb(error.__traceback__)
    ]
    known = [name for name in names if name in DISTRIBUTIONS]
    return known[-1] if known else None


def _explain(scope: str, error: Exception) -> str:
    """One sentence for a package that cannot be imported."""
    have = installed(scope)
    missing = getattr(error, 'name', None) or ''
    if not have and missing == scope:
        official, fork = DISTRIBUTIONS[scope][:2]
        return (
            f'default_scope={scope!r} needs {scope}, which is not installed; '
            f'install it with pip install {fork} (the maintained fork) or pip '
            f'install {official}; {_PAGE}.'
        )
    name = ' '.join(next(iter(have.items()), (scope, '')))
    reason = str(error).replace('\n', ' ')
    if isinstance(error, AssertionError):
        there = [
            f'{key}=={value}'
            for module in ('mmcv', 'mmengine')
            for key, value in installed(module).items()
        ]
        refusing = _raised_in(error)
        who, way_out = 'it', ''
        if refusing not in (None, scope):
            who = f'{refusing}, which {scope} imports where it is installed,'
            way_out = f', or uninstall {refusing}'
        todo = (
            f'{who} refuses {" or ".join(there)}, so install one that it '
            f'accepts, with mmdet 3.3 or mmsegmentation 1.2 that is pip '
            f'install mmcv==2.1.0{way_out}; {_PAGE}'
        )
    elif missing == 'mmcv._ext':
        todo = (
            "mmcv's operators are not compiled, so remove mmcv and install "
            'it where a compiler is, with MMCV_WITH_OPS=1 pip install '
            f'--no-build-isolation; {_PAGE}'
        )
    elif missing == 'pkg_resources':
        todo = 'run pip install "setuptools<81", the last version that has it'
    elif missing:
        todo = f'run pip install {missing.partition(".")[0]}'
    else:
        todo = _PAGE
    return f'{name} cannot be imported ({reason}); {todo}.'
