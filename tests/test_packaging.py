# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is installed: configs and tools for mim, and nothing over a fork."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from importlib.metadata import Distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

import mmdat
from mmdat.datasets.digits import DigitsOptions, make_digits
from mmdat.utils import packages

ROOT = Path(__file__).parents[1]


def build(target: Path, *kind: str) -> None:
    """Builds in a copy, as pip does from a source tree."""
    copy = target / 'source'
    skip = shutil.ignore_patterns('.*', 'data', 'work_dirs', 'tests')
    shutil.copytree(ROOT, copy, ignore=skip)
    code = (
        'import sys\nfrom setuptools import build_meta\n'
        f'build_meta.build_{kind[0]}({str(target)!r})'
    )
    subprocess.run(
        [sys.executable, '-c', code], cwd=copy, check=True, capture_output=True
    )
    assert not (copy / 'mmdat' / '.mim').exists()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    build(folder, 'wheel')
    return zipfile.ZipFile(next(folder.glob('*.whl')))


class Environment:
    """A new virtual environment with the wheel in it.

    What mmdat needs is not downloaded once more but read from the environment
    of the tests, without the mmdat that is installed there.
    """

    def __init__(self, folder, wheel):
        self.python = folder / 'bin' / 'python'
        run([sys.executable, '-m', 'venv', folder])
        run([self.python, '-m', 'pip', 'install', '--no-deps', '-q', wheel])
        self.site = next((folder / 'lib').glob('python3*/site-packages'))
        dependencies = self.site / 'dependencies.pth'
        dependencies.write_text(
            '\n'.join(p for p in sys.path if p.endswith('-packages'))
        )
        self.mim = self.site / 'mmdat' / '.mim'

    def __call__(self, *command, code=0):
        """Runs Python with a command line, away from the source tree."""
        return run([self.python, *command], self.site.parent, code)


def run(command, folder=None, code=0):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment.pop('PYTHONPATH', None)
    done = subprocess.run(
        [str(c) for c in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output[-4000:]
    return output


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp('venv'), wheel.filename)


def test_a_wheel_carries_everything(wheel):
    names = set(wheel.namelist())
    for path in (
        'mmdat/models/attention/deformable.py',
        'mmdat/.mim/configs/mask_rcnn_dat_t_coco.py',
        'mmdat/.mim/configs/_base_/models/mask_rcnn_dat.py',
        'mmdat/.mim/tools/train.py',
        'mmdat/.mim/tools/dist_train.sh',
        'mmdat/.mim/demo/image_demo.py',
        'mmdat/.mim/model-index.yml',
        'mmdat/visualization/explorer/page.html',
        'mmdat/visualization/explorer/page.css',
        'mmdat/visualization/explorer/page.js',
        'mmdat/visualization/explorer/scene.js',
    ):
        assert path in names
    assert not any('tests/' in n or '__pycache__' in n for n in names)
    # The demo's model would more than double it; the tools say where it is.
    assert not any('safetensors' in Path(n).suffix for n in names)
    ours = {
        str(p.relative_to(ROOT))
        for p in (ROOT / 'mmdat').rglob('*.py')
        if '.mim' not in p.parts
    }
    assert ours <= names


def test_a_source_distribution_carries_everything(tmp_path):
    build(tmp_path, 'sdist')
    shutil.unpack_archive(next(tmp_path.glob('*.tar.gz')), tmp_path / 'out')
    top = next((tmp_path / 'out').iterdir())
    for path in (
        'configs/mask_rcnn_dat_t_coco.py',
        'tools/dist_train.sh',
        'demo/image_demo.py',
        'projects/ablations/run.py',
        'projects/benchmark/run.py',
        'model-index.yml',
    ):
        assert (top / path).is_file()


def test_requirements_name_no_openmmlab_package_outside_extras(wheel):
    name = next(n for n in wheel.namelist() if n.endswith('METADATA'))
    metadata = message_from_string(wheel.read(name).decode())
    lines = metadata.get_all('Requires-Dist')
    tasks = {'det', 'seg', 'cls', 'all'}
    families = {f'{f}-{t}' for f in ('onedl', 'official') for t in tasks}
    assert tasks | families | {'dev'} == set(
        metadata.get_all('Provides-Extra')
    )
    always = [line for line in lines if 'extra ==' not in line]
    assert [line.split('>')[0] for line in always] == ['torch']
    # An extra of the one family would be put over the packages of the other.
    for line in lines:
        fork = re.match(r'onedl-', line)
        official = re.match(r'mm(engine|cv|det|seg|pretrain)', line)
        if fork or official:
            family = 'onedl' if fork else 'official'
            assert f'"{family}-' in line.replace("'", '"'), line


def metadata_of(wheel):
    name = next(n for n in wheel.namelist() if n.endswith('METADATA'))
    return message_from_string(wheel.read(name).decode())


def test_links_of_the_long_description_leave_the_repository(wheel):
    text = metadata_of(wheel).get_payload()
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    assert len(links) > 20
    for link in links:
        assert re.match('https://|#', link), link
        path = re.sub(r'.*/(blob|raw)/main/', '', link).partition('#')[0]
        if '/main/' in link:
            assert (ROOT / path).exists(), link


def test_the_metadata_describe_the_package(wheel):
    metadata = metadata_of(wheel)
    assert metadata['Version'] == mmdat.__version__
    assert metadata['Author'] and metadata['Keywords']
    assert len(metadata.get_all('Classifier')) > 5
    changes = (ROOT / 'CHANGELOG.md').read_text()
    assert f'## [{mmdat.__version__}]' in changes
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'\nversion: {mmdat.__version__}\n' in citation


def test_badges_are_true():
    setup = (ROOT / 'setup.py').read_text()
    torch, python = (
        re.search(rf'{name}>=([\d.]+)', setup)[1]
        if name == 'torch'
        else re.search(r"python_requires='>=([\d.]+)'", setup)[1]
        for name in ('torch', 'python')
    )
    newest = re.findall(r'Python :: (3\.\d+)', setup)[-1]
    images = ROOT / 'docs/images'
    assert f'{python} to {newest}' in (images / 'badge_python.svg').read_text()
    assert f'{torch} or newer' in (images / 'badge_torch.svg').read_text()
    assert 'Apache-2.0' in (images / 'badge_licence.svg').read_text()


@pytest.fixture(scope='module')
def wheel_file(wheel):
    return Path(wheel.filename)


def would_install(environment, wheel_file, extra):
    """What pip says that it would install, from nowhere; None if it fails."""
    done = subprocess.run(
        [
            *(environment.python, '-m', 'pip', 'install', '--dry-run'),
            *('--no-index', '--quiet'),
            *('--report', '-', f'{wheel_file}[{extra}]'),
        ],
        env={
            **os.environ,
            'PIP_CONFIG_FILE': os.devnull,
            'PIP_FIND_LINKS': '',
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return None, done.stderr
    report = json.loads(done.stdout)
    return {x['metadata']['name'] for x in report['install']}, ''


@pytest.mark.parametrize('extra', ['det', 'seg', 'cls', 'all'])
def test_extras_of_tasks_leave_the_installed_family(
    environment, wheel_file, extra
):
    """Fork or official: nothing is put on top of it."""
    pytest.importorskip('mmdet')
    names, error = would_install(environment, wheel_file, extra)
    assert names is not None and names <= {'mmdat'}, error


def test_extras_of_a_family_fit_what_is_tested(environment, wheel_file):
    """And those of the other would have to be fetched."""
    pytest.importorskip('mmdet')
    families = ['onedl', 'official']
    if packages.installed('mmdet').get('mmdet'):
        families.reverse()
    names, error = would_install(environment, wheel_file, f'{families[0]}-all')
    assert names is not None and names <= {'mmdat'}, error
    names, error = would_install(environment, wheel_file, f'{families[1]}-all')
    assert names is None and 'No matching distribution' in error


def test_an_installed_wheel_runs(environment):
    out = environment('-m', 'mmdat.utils.collect_env')
    assert f'mmdat: {mmdat.__version__} in {environment.site}' in out
    out = environment(environment.mim / 'demo' / 'image_demo.py', '--help')
    assert 'usage: image_demo.py' in out


def test_without_the_demo_model_it_is_said_where_it_is(environment):
    pytest.importorskip('mmdet')
    for tool in ('visualization/explore.py', 'visualization/vis_points.py'):
        out = environment(environment.mim / 'tools' / tool, code=2)
        assert 'wheels leave them out, so clone the repository' in out


def test_an_installed_wheel_finds_its_configs(environment, tmp_path):
    """By a tool of its own, in a config that is the user's."""
    pytest.importorskip('mmdet')
    config = tmp_path / 'mine.py'
    parts = ('models/mask_rcnn_dat', 'datasets/coco_instance')
    parts += ('schedules/coco_1x', 'runtimes/detection')
    bases = [f'mmdat::_base_/{part}.py' for part in parts]
    config.write_text(f'_base_ = {bases}\n')
    out = environment(environment.mim / 'tools' / 'train.py', config, code=2)
    assert 'train: The train data is missing' in out.splitlines()[-1]


def test_mim_finds_the_tools_of_an_installed_wheel(environment):
    installed = Distribution.discover(name='mmdat', path=[environment.site])
    first = next(installed).files[0].parts[0]  # as onedl-mim does
    for folder in ('mmdat', first):
        mim = environment.site / folder / '.mim'
        for path in ('tools/train.py', 'tools/test.py', 'model-index.yml'):
            assert (mim / path).is_file()
        found = list((environment.site / folder).rglob('upernet_dat_t_*.py'))
        assert len(found) == 1


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec('mim') is None,
    reason='mim is not installed; pip install --no-deps onedl-mim would do',
)
def test_mim_trains_and_tests(environment, tmp_path):
    pytest.importorskip('mmpretrain')
    options = DigitsOptions(train=8, val=4, size=96, crops=4, crop_size=48)
    digits = make_digits(tmp_path / 'digits', options)
    data = ['--data-root', f'{digits}/imagenet/', '--work-dir', tmp_path]
    config = 'classifier_dat_digits.py'
    out = environment(
        *('-m', 'mim', 'train', 'mmdat', config, '--gpus', 0, *data),
        *('--cfg-options', 'train_cfg.max_epochs=1'),
    )
    assert 'Training finished successfully' in out
    out = environment(
        *('-m', 'mim', 'test', 'mmdat', config, *data),
        *('--checkpoint', tmp_path / 'epoch_1.pth'),
    )
    assert 'accuracy/top1' in out and 'Testing finished successfully' in out


def test_this_installation_shows_its_configs_to_mim():
    mim = Path(mmdat.__file__).parent / '.mim'
    if not mim.exists() and Path(mmdat.__file__).parents[1] == ROOT:
        pytest.skip('run from a source tree that is not installed')
    assert (mim / 'configs' / 'mask_rcnn_dat_t_coco.py').is_file()
    assert (mim / 'tools' / 'train.py').is_file()
    assert (mim / 'model-index.yml').is_file()
