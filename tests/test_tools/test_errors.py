# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What is wrong is said in one sentence, without a traceback."""

import shutil
import socket

import malice
import pytest
import torch

from .conftest import run, tool

COCO = 'configs/mask_rcnn_dat_t_coco.py'
DIGITS = 'configs/mask_rcnn_dat_digits.py'
CONVERTER = 'model_converters/convert_released.py'


def sentence(output: str) -> str:
    """The one line an error is, whatever warnings precede it."""
    assert 'Traceback' not in output
    return output.strip().splitlines()[-1]


def test_missing_data(tmp_path):
    work = tmp_path / 'work'
    said = sentence(tool('train.py', COCO, '--work-dir', work, ok=False))
    assert said.startswith('train: The train data is missing')
    assert 'data/coco/annotations/instances_train2017.json' in said
    assert '--data-root FOLDER' in said and 'ln -s FOLDER data/coco' in said
    said = sentence(
        tool(
            'train.py',
            COCO,
            '--data-root',
            tmp_path / 'elsewhere',
            '--work-dir',
            work,
            ok=False,
        )
    )
    assert f'{tmp_path}/elsewhere/annotations' in said
    assert not work.exists()


def test_missing_validation_data_is_noticed_before_training(digits, tmp_path):
    (tmp_path / 'coco').mkdir()
    for name in ('train2017', 'annotations'):
        (tmp_path / 'coco' / name).symlink_to(digits / 'coco' / name)
    said = sentence(
        tool(
            'train.py',
            DIGITS,
            '--data-root',
            f'{tmp_path}/coco/',
            '--work-dir',
            tmp_path / 'work',
            ok=False,
        )
    )
    assert 'The val data is missing' in said and 'val2017' in said


def test_missing_config():
    said = sentence(tool('train.py', 'configs/dat_x.py', ok=False))
    assert 'There is no config configs/dat_x.py' in said


def test_unknown_arch_lists_the_known_ones():
    said = sentence(
        tool(
            'train.py',
            COCO,
            '--cfg-options',
            'model.backbone.arch=dat_x',
            ok=False,
        )
    )
    assert "dat_pp_b_384; got 'dat_x'" in said and 'model.backbone' in said


def test_unknown_argument_of_the_backbone():
    said = sentence(
        tool(
            'train.py', COCO, '--cfg-options', 'model.backbone.dim=3', ok=False
        )
    )
    assert "unexpected keyword argument 'dim'" in said


def test_impossible_image_size():
    said = sentence(
        tool(
            'train.py',
            COCO,
            '--cfg-options',
            'model.backbone.img_size=-5',
            ok=False,
        )
    )
    assert 'img_size must be a positive whole number' in said and '-5' in said


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'There is no checkpoint'), (b'<html>', 'is a web page')],
)
def test_missing_or_wrong_checkpoint(content, message, tmp_path):
    path = tmp_path / 'weights.pth'
    if content is not None:
        path.write_bytes(content)
    said = sentence(tool('test.py', DIGITS, path, ok=False))
    assert said.startswith('test: ') and message in said
    said = sentence(
        tool(
            'train.py',
            DIGITS,
            '--cfg-options',
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={path}',
            ok=False,
        )
    )
    assert 'model.backbone.init_cfg' in said and message in said


def test_a_missing_file_to_start_from(tmp_path):
    path = tmp_path / 'x.pth'
    said = sentence(tool('train.py', DIGITS, '--pretrained', path, ok=False))
    assert said.startswith('train: model.backbone.init_cfg: There is no')


def test_malicious_checkpoint(tmp_path):
    evil = tmp_path / 'evil.pth'
    mark = malice.save(evil, state_dict={})
    for command in (
        ('test.py', DIGITS, evil),
        ('train.py', DIGITS, '--resume', evil),
        (CONVERTER, evil, tmp_path / 'good.pth'),
    ):
        said = sentence(tool(*command, ok=False))
        assert 'asks to run posix.system' in said
    assert not mark.exists() and list(tmp_path.iterdir()) == [evil]


def test_a_prefix_that_no_entry_has(tmp_path):
    torch.save({'patch_proj.0.bias': torch.ones(1)}, tmp_path / 'x.pth')
    said = sentence(
        tool(
            'train.py',
            DIGITS,
            '--cfg-options',
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={tmp_path}/x.pth',
            'model.backbone.init_cfg.prefix=backbone',
            ok=False,
        )
    )
    assert 'has no entry that starts with backbone.; leave out prefix' in said


@pytest.mark.skipif(torch.cuda.is_available(), reason='AMP works here')
def test_amp_without_an_accelerator():
    said = sentence(tool('train.py', DIGITS, '--amp', ok=False))
    assert 'leave out --amp' in said


def test_out_of_the_wrong_kind(digits, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save({}, path)
    said = sentence(tool('test.py', DIGITS, path, '--out', 'x.json', ok=False))
    assert 'must name a .pkl file' in said


@pytest.mark.parametrize('script', ['dist_train.sh', 'slurm_train.sh'])
def test_launchers_say_how_to_be_called(script):
    said = run(f'tools/{script}', ok=False)
    assert said.startswith('usage: ') and 'CONFIG' in said


def test_processes_must_be_a_number():
    said = run('tools/dist_train.sh', DIGITS, 'two', ok=False)
    assert (
        said == "PROCESSES must be a whole number of at least 1; got 'two'.\n"
    )


@pytest.mark.parametrize(
    ('script', 'name', 'value'),
    [
        ('dist_train.sh', 'NNODES', '0'),
        ('dist_train.sh', 'PORT', '99999'),
        ('dist_test.sh', 'PORT', 'abc'),
        ('dist_train.sh', 'MAX_RESTARTS', '-1'),
        ('slurm_train.sh', 'GPUS', '0'),
        ('slurm_test.sh', 'GPUS_PER_NODE', 'all'),
        ('slurm_train.sh', 'CPUS_PER_TASK', '1.5'),
    ],
)
def test_variables_of_launchers_must_be_numbers(script, name, value):
    # The number of processes is the second or third, a name for Slurm.
    arguments = [DIGITS, 2, 2, 2]
    said = run(f'tools/{script}', *arguments, ok=False, env={name: value})
    assert said.startswith(f'{name} must be a whole number')
    assert f"got '{value}'" in said and said.count('\n') == 1


def test_slurm_scripts_need_slurm():
    env = {'PATH': '/usr/bin:/bin'}
    if shutil.which('srun', path=env['PATH']):
        pytest.skip('this machine has Slurm')
    said = run('tools/slurm_train.sh', 'p', 'j', DIGITS, ok=False, env=env)
    assert said.startswith('srun was not found') and 'dist_train.sh' in said


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = run(
            'tools/dist_train.sh', DIGITS, 2, ok=False, env={'PORT': port}
        )
    assert said.splitlines()[-1].startswith(
        f'Another program listens at the port {port}; '
    )
    assert 'Traceback' not in said
