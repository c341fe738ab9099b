# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""What the launchers start, with stand-ins for torchrun and Slurm."""

import stat

import pytest

from .conftest import ROOT, run


def script(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def echo(tmp_path):
    """A Python that prints its arguments and threads."""
    return script(
        tmp_path / 'echo',
        '#!/bin/bash\necho "$@"\necho "threads ${OMP_NUM_THREADS:-}"\n',
    )


def test_one_machine(echo):
    said = run('tools/dist_train.sh', 'c.py', 8, '--amp', env={'PYTHON': echo})
    assert '-m torch.distributed.run --nnodes 1 --nproc_per_node 8' in said
    assert '--standalone' in said
    assert f'{ROOT}/tools/train.py c.py --amp --launcher pytorch' in said


def test_several_machines(echo):
    env = dict(
        PYTHON=str(echo),
        NNODES='3',
        NODE_RANK='2',
        MASTER_ADDR='10.0.0.7',
        PORT='4711',
    )
    said = run('tools/dist_test.sh', 'c.py', 'w.pth', 4, '--tta', env=env)
    assert '--nnodes 3 --nproc_per_node 4 --node_rank 2' in said
    assert '--master_addr 10.0.0.7 --master_port 4711' in said
    assert 'tools/test.py c.py w.pth --tta --launcher pytorch' in said


def test_threads_of_the_user_are_kept(echo):
    said = run(
        'tools/dist_train.sh',
        'c.py',
        2,
        env={'PYTHON': echo, 'OMP_NUM_THREADS': '7'},
    )
    assert 'threads 7' in said


def test_slurm(echo, tmp_path):
    srun = script(tmp_path / 'srun', '#!/bin/bash\necho "srun $@"\n')
    env = dict(
        PATH=f'{srun.parent}:/usr/bin:/bin',
        GPUS='16',
        PYTHON='python3',
        SRUN_ARGS='--time 1:00',
    )
    said = run('tools/slurm_train.sh', 'part', 'job', 'c.py', '--amp', env=env)
    assert 'srun -p part --job-name job --gres gpu:8' in said
    assert '--ntasks 16' in said and '--time 1:00' in said
    assert 'tools/train.py c.py --amp --launcher slurm' in said
    env['GPUS'] = '2'
    said = run('tools/slurm_test.sh', 'p', 'j', 'c.py', 'w.pth', env=env)
    assert '--gres gpu:2' in said and 'tools/test.py c.py w.pth' in said


@pytest.mark.slow
def test_slurm_processes_find_each_other(digits, tmp_path):
    """A stand-in srun starts the processes with Slurm's variables."""
    script(
        tmp_path / 'srun',
        '#!/bin/bash\n'
        'while [ "$1" != -u ]; do\n'
        '  [ "$1" = --ntasks ] && tasks=$2\n'
        '  python=$1; shift\n'
        'done\n'
        'export SLURM_NTASKS=$tasks SLURM_NODELIST=here\n'
        'for i in $(seq 0 $((tasks - 1))); do\n'
        '  SLURM_PROCID=$i SLURM_LOCALID=$i "$python" "$@" &\n'
        'done\n'
        'wait -n && wait -n\n',
    )
    script(tmp_path / 'scontrol', '#!/bin/bash\necho 127.0.0.1\n')
    env = dict(
        PATH=f'{tmp_path}:/usr/bin:/bin',
        GPUS='2',
        GPUS_PER_NODE='0',
        MASTER_PORT='29517',
    )
    said = run(
        'tools/slurm_train.sh',
        'part',
        'job',
        'configs/classifier_dat_digits.py',
        '--work-dir',
        tmp_path / 'work',
        '--data-root',
        f'{digits}/imagenet/',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        env=env,
    )
    assert 'GPU number: 2' in said and 'accuracy/top1' in said
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()


def tree(folder):
    """The launchers in a tree whose .venv has a Python with torch."""
    (folder / 'tools').mkdir()
    for path in (ROOT / 'tools').glob('*.sh'):
        (folder / 'tools' / path.name).symlink_to(path)
        # The tree is where the file is called from, not what a link names.
    (folder / '.venv' / 'bin').mkdir(parents=True)
    (folder / 'bin').mkdir()
    script(
        folder / '.venv/bin/python',
        '#!/bin/bash\n[ "$1" = - ] && exit 0\necho "of the tree $@"\n',
    )
    return folder


def test_the_python_of_the_tree_is_taken_where_the_shells_has_no_torch(
    tmp_path,
):
    root = tree(tmp_path)
    script(root / 'bin/python', '#!/bin/bash\nexit 1\n')
    env = dict(PATH=f'{root}/bin:/usr/bin:/bin', PYTHON='')
    said = run(root / 'tools/dist_train.sh', 'c.py', 8, env=env)
    assert f'has no torch, so {root}/.venv/bin/python is used' in said
    assert f'source {root}/.venv/bin/activate' in said
    assert 'of the tree' in said and '--nproc_per_node 8' in said
    script(
        root / 'bin/python',
        '#!/bin/bash\n[ "$1" = - ] && exit 0\necho "of the shell $@"\n',
    )
    said = run(root / 'tools/dist_train.sh', 'c.py', 8, env=env)
    assert 'of the shell' in said and 'is used' not in said
    script(root / 'bin/python', '#!/bin/bash\nexit 1\n')
    script(root / '.venv/bin/python', '#!/bin/bash\nexit 1\n')
    said = run(root / 'tools/dist_train.sh', 'c.py', 8, env=env, ok=False)
    assert 'run make setup, or set PYTHON' in said
