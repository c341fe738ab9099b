# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What a bug report needs: ``python -m mmdat.utils.collect_env``."""

import os
import platform
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

import torch
from mmengine.utils.dl_utils import collect_env as collect_base_env

import mmdat
from mmdat.ops.triton.probe import report

from .errors import UserError
from .packages import check_package

PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


def _describe(module: str, distributions: dict[str, list[str]]) -> str:
    """Version and distribution, since forks share their modules' names."""
    if find_spec(module) is None:
        return 'not installed'
    names = sorted(set(distributions.get(module, [])))
    text = ', '.join(f'{version(name)} ({name})' for name in names)
    text = text or 'importable, not installed'
    if len(names) > 1:
        text += (
            f'; two packages share one folder, so run pip uninstall -y '
            f'{" ".join(names)} and install one of them'
        )
    try:
        check_package(module)
    except UserError as error:
        text += f'; {error}'
    return text


def _mmcv_operators() -> str:
    """Whether mmcv was compiled, and for what."""
    if find_spec('mmcv') is None:
        return 'not installed'
    if find_spec('mmcv._ext') is None:
        return 'not compiled; Mask R-CNN needs them'
    try:
        from mmcv.ops import get_compiler_version, get_compiling_cuda_version
    except ImportError as error:
        return f'cannot be loaded, compile them against this torch ({error})'

    cuda = get_compiling_cuda_version()
    return f'compiled by {get_compiler_version()}, CUDA {cuda}'


def collect_env() -> dict[str, str]:
    """Everything of this environment that may matter, by name."""
    try:
        env = dict(collect_base_env())
    except ModuleNotFoundError as error:  # Python 3.12 has no distutils
        env = {
            'Python': platform.python_version(),
            'PyTorch': torch.__version__,
            'Report of mmengine': f'{error}; run pip install setuptools',
        }
    env['Platform'] = platform.platform()
    env['CPU cores'] = str(os.cpu_count())
    distributions = packages_distributions()
    env.pop('MMEngine', None)
    for module in PACKAGES:
        env[module] = _describe(module, distributions)
    env["mmcv's operators"] = _mmcv_operators()
    env['mmdat'] = f'{mmdat.__version__} in {os.path.dirname(mmdat.__file__)}'
    env.update(report())
    backend = os.environ.get('MMDAT_ATTN_BACKEND')
    env['MMDAT_ATTN_BACKEND'] = backend or 'not set'
    return env


if __name__ == '__main__':
    for name, value in collect_env().items():
        print(f'{name}: {value}')
