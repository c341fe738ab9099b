# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Pictures of points and attention, through the command line."""

import json
import sys

import cv2
import golden_rule
import numpy as np
import pytest
import released
import torch
from PIL import Image

from mmdat.engine.configuration import load_config

from .conftest import ROOT, run

for package in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(package)

SMALL = dict(
    embed_dims=[32, 64, 96, 128],
    depths=[1, 1, 2, 1],
    num_heads=[1, 2, 3, 4],
    attentions=['N', 'N', 'DD', 'D'],
    img_size=64,
)
TASKS = dict(
    det='mask_rcnn_dat_digits',
    seg='upernet_dat_digits',
    cls='classifier_dat_digits',
)

# All in one process, since importing the packages is what takes time.
DRIVER = """
import json, runpy, sys, contextlib, io
for command in json.load(open(sys.argv[1])):
    sys.argv = command
    code, said = 0, io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(command[0], run_name='__main__')
        except SystemExit as stop:
            code = stop.code
    print('\\n@@', json.dumps([code, said.getvalue()]))
"""


def together(folder, *commands, ok=True):
    """Runs commands of tools/visualization; returns what each wrote last."""
    listed = [
        [str(ROOT / 'tools/visualization' / name), *map(str, rest)]
        for name, *rest in commands
    ]
    (folder / 'commands.json').write_text(json.dumps(listed))
    out = run(sys.executable, '-c', DRIVER, folder / 'commands.json')
    found = [
        json.loads(line[3:])
        for line in out.splitlines()
        if line.startswith('@@ ')
    ]
    assert len(found) == len(commands)
    for code, said in found:
        assert (code == 0) == ok, said
        assert 'Traceback' not in said
    return [said.strip().splitlines()[-1] for _, said in found]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """An image, small configs of each task and checkpoints for them."""
    folder = tmp_path_factory.mktemp('vis')
    pixels = np.random.default_rng(0).integers(0, 255, (90, 130, 3))
    cv2.imwrite(str(folder / 'image.png'), pixels)
    from mmdat.analysis.forward import build_model

    for task, name in TASKS.items():
        (folder / f'{task}.py').write_text(
            f'_base_ = {str(ROOT / "configs" / name) + ".py"!r}\n'
            f'model = dict(backbone=dict(arch={SMALL}))\n'
        )
        work = folder / f'work_{task}'
        work.mkdir()
        model = build_model(load_config(str(folder / f'{task}.py')))
        for number in (9, 10):
            model.backbone.stages[3].blocks[
                0
            ].attn.conv_offset.proj.weight.data[:] *= number
            torch.save(
                dict(state_dict=model.state_dict(), meta={}),
                work / f'epoch_{number}.pth',
            )
    return folder


@pytest.mark.slow
def test_pictures_of_every_task(folder):
    image, out = folder / 'image.png', folder / 'out'

    def draw(task, name, *options):
        return (
            'vis_points.py',
            image,
            folder / f'{task}.py',
            folder / f'work_{task}' / 'epoch_9.pth',
            *options,
            '--out',
            out / f'{task}_{name}.png',
        )

    commands = [
        draw('det', 'points'),
        draw('seg', 'attention', '--query', 30, 20, '--query', 100, 80),
        draw('cls', 'group', '--stage', 2, '--block', 0, '--group', 0),
        draw('cls', 'heads', '--query', 30, 20, '--head', '--stage', 3),
        draw('cls', 'grid', '--grid'),
        draw('cls', 'grid_query', '--grid', '--query', 30, 20, '--average'),
    ]
    said = together(folder, *commands)
    assert said[0] == f'Points of 1 block are in {out / "det_points.png"}'
    assert said[5] == (
        f'Attention of 3 blocks is in {out / "cls_grid_query.png"}'
    )
    drawn = [cv2.imread(str(path)) for path in sorted(out.glob('*.png'))]
    assert len(drawn) == len(commands)
    assert all(one.shape[1] > 700 and one.std() > 20 for one in drawn)


@pytest.mark.slow
def test_released_file_and_movie(folder):
    case = golden_rule.case('pp-dat_tiny-224x224')
    torch.save(
        dict(model=released.state_dict(case.keys)), folder / 'released.pth'
    )
    image = folder / 'image.png'
    said = together(
        folder,
        (
            'vis_points.py',
            image,
            ROOT / 'configs/mask_rcnn_dat_pp_t_coco.py',
            folder / 'released.pth',
            '--cfg-options',
            'test_dataloader.dataset.pipeline.1.scale=(160,128)',
            '--out',
            folder / 'released.jpg',
        ),
        (
            'vis_training.py',
            image,
            folder / 'det.py',
            folder / 'work_det',
            '--out',
            folder / 'movie.gif',
        ),
        (
            'vis_training.py',
            image,
            folder / 'cls.py',
            folder / 'work_cls' / 'epoch_10.pth',
            folder / 'work_cls' / 'epoch_9.pth',
            folder / 'work_cls' / 'epoch_10.pth',
            '--stage',
            3,
            '--group',
            1,
            '--out',
            folder / 'three.gif',
        ),
    )
    assert cv2.imread(str(folder / 'released.jpg')).std() > 20
    assert said[1] == f'2 frames are in {folder / "movie.gif"}'
    with Image.open(folder / 'three.gif') as movie:
        assert movie.n_frames == 3


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_sentence(folder):
    image, config = folder / 'image.png', folder / 'cls.py'
    work = folder / 'work_cls'
    draw = ('vis_points.py', image, config)
    move = ('vis_training.py', image, config)
    cases = {
        (*draw, '--stage', 0): (
            'stage 0 has no deformable attention; stage 2 has it in blocks '
            '0, 1, stage 3 in block 0.'
        ),
        (*draw, '--stage', 2, '--block', 7): 'stage 2, block 7 has no',
        (*draw, '--query', 130, 20): (
            'x in 0 to 129 and y in 0 to 89; got x 130, y 20.'
        ),
        (*draw, '--query', 3, 2, '--head', 4): '--head must be in 0 to 3',
        (*draw, '--group', 2): '--group must be in 0 to 1 in block 0 of',
        (*draw, '--head', 0): '--query X Y must say of which pixel',
        (*draw, '--query', 3, 2, '--group', 0): 'choose by --head',
        (*draw, '--grid', '--block', 0): 'leave out --block',
        (*draw, '--out', 'x.xyz'): '--out must end in one of',
        move: 'A movie needs checkpoints, and none were named',
        ('explore.py', image, config, '--out', 'x.pdf'): 'must end in .html',
        ('explore.py', image, config, '--stage', 0): 'stage 0 has no def',
        ('grad_cam.py', image, config, '--out', 'x'): 'must end in one of',
        ('grad_cam.py', image, config, '--target', 'x'): 'no class x',
        ('vis_points.py', 'none.jpg', config): 'There is no image none.jpg',
        ('vis_points.py', image, 'none.py'): 'There is no config none.py',
        (*draw, 'none.pth'): 'There is no checkpoint none.pth',
        (*draw, folder / 'work_seg' / 'epoch_9.pth', '--cfg-options')
        + ('model.backbone.arch.depths=[1,1,2,2]',)
        + ('model.backbone.arch.attentions=["N","N","DD","DD"]',): (
            'epoch_9.pth is an unpublished DAT++'
        ),
        (*move, work, '--out', 'x.mov'): 'a .gif or .mp4 file',
        (*move, folder / 'none'): 'no checkpoint or work dir',
        (*move, folder): 'has no checkpoints named epoch_N.pth',
        (*move, work, '--stage', 1): 'stage 1 has no',
        (*move, work, '--group', 9): '--group must be in 0 to',
    }
    for said, wanted in zip(
        together(folder, *cases, ok=False), cases.values(), strict=True
    ):
        assert wanted in said
