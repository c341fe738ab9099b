# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Packaging of mmdat; needs neither torch nor any OpenMMLab package."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
MIM_FILES = ('configs', 'tools', 'demo', 'model-index.yml')

# Each OpenMMLab package exists twice, official and as the maintained fork with
# the same modules, and pip does not know that one stands for the other: it
# would put the second over the first. So neither the core nor the extras of
# the tasks name one; they hold what the packages need and do not ask for.
# Which of the two is said with its name, `onedl-det` or `official-det`. Each
# range is from the first release that has what we use to the next one that may
# change it; what is tested is in requirements/, to the digit.
TASKS = {
    'det': ['pycocotools'],
    'seg': ['ftfy', 'regex'],
    'cls': [],
}
FAMILIES = {
    'onedl': {
        '': ['onedl-mmengine>=0.10.8,<1', 'onedl-mmcv>=2.3,<3'],
        'det': ['onedl-mmdetection>=3.4,<4'],
        'seg': ['onedl-mmsegmentation>=1.3,<2'],
        'cls': ['onedl-mmpretrain>=1.3,<2'],
    },
    # mmdet 3.3 and mmsegmentation 1.2 refuse mmcv 2.2; torch 2.1 needs numpy
    # 1 and does not say so.
    'official': {
        '': ['mmengine>=0.10.4,<0.11', 'mmcv>=2.1,<2.2', 'numpy<2'],
        'det': ['mmdet>=3.3,<4'],
        'seg': ['mmsegmentation>=1.2.2,<2'],
        'cls': ['mmpretrain>=1.2,<2'],
    },
}
EXTRAS = dict(TASKS)
EXTRAS['all'] = sorted({line for lines in TASKS.values() for line in lines})
for family, packages in FAMILIES.items():
    for task, lines in TASKS.items():
        EXTRAS[f'{family}-{task}'] = packages[''] + packages[task] + lines
    EXTRAS[f'{family}-all'] = sorted(
        {line for task in TASKS for line in EXTRAS[f'{family}-{task}']}
    )
# Without versions: they follow whichever torch and numpy are there.
EXTRAS['dev'] = [
    'hypothesis',
    'matplotlib',
    'onnx',
    'onnxruntime',
    'onnxscript',
    'opencv-python-headless',
    'psutil',
    'pycocotools',
    'pytest',
    'pytest-xdist',
    'rich',
    'ruff',
    'safetensors',
    'scikit-image',
    'scikit-learn',
    'tqdm',
]


def place_mim_files(mim: Path, links: bool = False) -> None:
    """Fills a folder that mim looks into, with copies or links."""
    shutil.rmtree(mim, ignore_errors=True)
    mim.mkdir(parents=True)
    # The demo's model would make a wheel several times as large.
    skip = shutil.ignore_patterns(
        '__pycache__', 'dev', 'pictures', '*.safetensors'
    )
    for source in (ROOT / name for name in MIM_FILES):
        target = mim / source.name
        if not source.exists():
            continue
        if links:
            target.symlink_to(Path('..') / '..' / source.name)
        elif source.is_dir():
            shutil.copytree(source, target, ignore=skip)
        else:
            shutil.copyfile(source, target)


class BuildWithMim(build_py):
    """Also puts configs and tools into ``mmdat/.mim``, where mim looks.

    An editable install gets links in the source tree; a wheel gets copies,
    and the tree is left alone.
    """

    def run(self) -> None:
        """Builds, then adds the files."""
        super().run()
        editable = getattr(self, 'editable_mode', False)
        top = Path(ROOT if editable else self.build_lib)
        place_mim_files(top / 'mmdat' / '.mim', links=editable)


class WheelWithMim(bdist_wheel):
    """Puts them beside the metadata of a wheel as well.

    onedl-mim takes the folder of the first file in an installed wheel's list
    for the package. That is ``mmdat`` for none whose distribution bears the
    name of its module: ``mmdat-0.1.0.dist-info`` comes before ``mmdat``.
    """

    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        """Makes the metadata, then adds the files."""
        super().egg2dist(egginfo_path, distinfo_path)
        if 'editable_wheel' not in self.distribution.command_obj:
            place_mim_files(Path(distinfo_path) / '.mim')


setup(
    name='mmdat',
    version=runpy.run_path(str(ROOT / 'mmdat' / 'version.py'))['__version__'],
    description='Deformable Attention Transformer backbones for OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=('mmdat', 'mmdat.*')),
    package_data={
        'mmdat': ['py.typed'],
        'mmdat.visualization.explorer': ['*.html', '*.css', '*.js'],
    },
    cmdclass={'build_py': BuildWithMim, 'bdist_wheel': WheelWithMim},
    install_requires=['torch>=2.1'],  # as tools/dev/compat.py tries it
    extras_require=EXTRAS,
    zip_safe=False,
)
