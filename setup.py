# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Packaging of mmdat; needs neither torch nor any OpenMMLab package."""

import re
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
# Where the repository is published. A package index shows the README, whose
# relative links then lead there.
URL = 'https://github.com/mmdat/mmdat'
MIM_FILES = ('configs', 'tools', 'demo', 'model-index.yml')

# Each OpenMMLab package exists twice with the same modules: official, and as
# the maintained fork. pip does not know that one replaces the other and would
# overwrite the first with the second. So neither the core nor the extras of
# the tasks contain one of them; these extras contain undeclared dependencies
# of the packages. The extras `onedl-det` and `official-det` name the family.
# Each range starts at the first release that has what we use and ends before
# the next one that may change it; requirements/ has the tested versions.
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
# Without versions, so that they fit the installed torch and numpy.
EXTRAS['dev'] = [
    'hypothesis',
    'ipykernel',
    'matplotlib',
    'mkdocs-material',
    'mkdocstrings[python]',
    'nbclient',
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
    'segmentation-models-pytorch',
    'timm',
    'tqdm',
]


def long_description() -> str:
    """The README, with links that work away from the repository."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')

    def absolute(match: re.Match) -> str:
        start, path = match.groups()
        kind = 'raw' if start.startswith('!') else 'blob'
        return f'{start}{URL}/{kind}/main/{path}'

    outside = r'(?!https?://|#)'
    return re.sub(rf'(!?\[[^\]]*\]\(){outside}([^)\s]+)', absolute, text)


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
    """Also puts these files beside the metadata of a wheel.

    onedl-mim takes the folder of the first file in an installed wheel's list
    for the package. If distribution and module have the same name, that is
    the folder of the metadata: ``mmdat-0.2.0.dist-info`` comes before
    ``mmdat``.
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
    long_description=long_description(),
    long_description_content_type='text/markdown',
    url=URL,
    project_urls={
        'Changelog': f'{URL}/blob/main/CHANGELOG.md',
        'Issues': f'{URL}/issues',
        'Paper, DAT': 'https://arxiv.org/abs/2201.00520',
        'Paper, DAT++': 'https://arxiv.org/abs/2309.01430',
    },
    author='mmdat contributors',
    license='Apache-2.0',
    keywords=[
        'DAT',
        'deformable attention',
        'vision transformer',
        'backbone',
        'OpenMMLab',
        'MMDetection',
        'MMSegmentation',
        'MMPretrain',
        'object detection',
        'semantic segmentation',
        'PyTorch',
    ],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
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
