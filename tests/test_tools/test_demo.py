# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""One picture through a detector, a segmentor and a classifier."""

import re
import sys

import numpy as np
import pytest
import released
import torch
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from mmdat.engine.configuration import load_config
from mmdat.engine.inference import (
    check_picture,
    choose_device,
    find_pictures,
    look,
)
from mmdat.utils.errors import UserError

from .conftest import ROOT, run

for package in ('mmdet', 'mmseg', 'mmpretrain'):
    pytest.importorskip(package)

DIGITS = {
    'mask_rcnn': dict(classes=tuple(f'digit {i}' for i in range(10))),
    'upernet': dict(
        classes=('ground', *(f'digit {i}' for i in range(10))),
        palette=[[20 * i, 0, 99] for i in range(11)],
    ),
    'classifier': dict(classes=[f'digit {i}' for i in range(10)]),
}


def config(name):
    return f'configs/{name}.py'


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    from skimage.data import astronaut

    path = tmp_path_factory.mktemp('picture') / 'astronaut.png'
    Image.fromarray(astronaut()[:96, 160:288]).save(path)
    return path


def build(name):
    cfg = load_config(str(ROOT / config(name)))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A checkpoint of each kind of model, as a training leaves it."""
    folder = tmp_path_factory.mktemp('weights')
    for name, dataset_meta in DIGITS.items():
        content = dict(
            meta=dict(dataset_meta=dataset_meta),
            state_dict=build(f'{name}_dat_digits').state_dict(),
        )
        torch.save(content, folder / f'{name}.pth')
    return folder


def demo(*arguments, **kwargs):
    return run(
        sys.executable, ROOT / 'demo' / 'image_demo.py', *arguments, **kwargs
    )


PATTERNS = {
    'mask_rcnn': r'digit \d 0\.\d\d at -?\d+ -?\d+ \d+ \d+',
    'upernet': r'(ground|digit \d) \d+\.\d%',
    'classifier': r'digit \d 0\.\d{3}',
}


@pytest.mark.parametrize('name', DIGITS)
def test_says_and_draws_what_it_sees(name, picture, weights):
    cfg = load_config(str(ROOT / config(f'{name}_dat_digits')))
    checkpoint = str(weights / f'{name}.pth')
    sight = look(cfg, checkpoint, str(picture), score=0.01)
    assert sight.lines
    assert all(re.fullmatch(PATTERNS[name], line) for line in sight.lines)
    numbers = [float(line.split()[2].rstrip('%')) for line in sight.lines]
    assert numbers == sorted(numbers, reverse=True)
    with Image.open(picture) as original:
        if name == 'classifier':
            # drawn larger, for the letters, with five lines below
            assert len(sight.lines) == 5
            height, width, _ = sight.drawing.shape
            assert width == 320 and height > 240 + 5 * 12
            below = sight.drawing[240:].min(axis=(1, 2)) < 128
            starts = np.flatnonzero(np.diff(below.astype(int)) == 1)
            assert len(starts) == 5
            # and no letter at the edge, where it would be cut
            assert sight.drawing[240:, -8:].min() == 255
            assert sight.drawing[-1].min() == 255
            original = original.resize((width, height))
        assert (sight.drawing != np.asarray(original)).any()
    if name == 'upernet':
        assert sum(numbers) > 95


def test_the_command(picture, weights, tmp_path):
    out = tmp_path / 'new' / 'drawing.png'
    said = demo(
        picture,
        config('mask_rcnn_dat_digits'),
        weights / 'mask_rcnn.pth',
        *('--out', out, '--device', 'cpu', '--score', 0.01),
    )
    assert re.search(f'(?m)^{PATTERNS["mask_rcnn"]}$', said)
    assert f'The drawing is {out}' in said
    with Image.open(out) as drawing, Image.open(picture) as original:
        assert drawing.size == original.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'keys', 'seen'),
    [
        ('classifier_dat_t_in1k', 'v1', r'[A-Za-z].* 0\.\d{3}'),
        ('mask_rcnn_dat_pp_t_coco', 'det', 'thing 1 1.00 at'),
        ('upernet_dat_pp_t_ade20k', 'det', r'[a-z].* \d+\.\d%'),
    ],
)
def test_released_files_as_they_are(name, keys, seen, picture, tmp_path):
    """In the authors' names; but for detection they name no classes."""
    entries = released.state_dict(f'keys-{keys}-dat_tiny')
    content = dict(model=entries)
    cfg = load_config(str(ROOT / config(name)))
    if keys == 'det':
        heads = {
            key: value
            for key, value in build(name).state_dict().items()
            if not key.startswith('backbone.')
        }
        heads.update((f'backbone.{k}', v) for k, v in entries.items())
        content = dict(state_dict=heads, optimizer=dict(state={}))
        cfg.test_dataloader.dataset.pipeline[1].scale = (160, 160)
    if name.startswith('mask_rcnn'):
        heads['roi_head.bbox_head.fc_cls.bias'][1] = 20
        classes = tuple(f'thing {i}' for i in range(80))
        content['meta'] = dict(CLASSES=classes, epoch=12)
    path = tmp_path / 'released.pth'
    torch.save(content, path)
    sight = look(cfg, str(path), str(picture), score=0)
    assert all(re.match(seen, line) for line in sight.lines), sight.lines


def test_inferencers_called_directly(picture, weights):
    """With a config and weights of ours, once mmdat is imported."""
    script = f"""
import mmdat
from mmdet.apis import DetInferencer
from mmseg.apis import MMSegInferencer
from mmpretrain import ImageClassificationInferencer

def files(name):
    return f'configs/{{name}}_dat_digits.py', f'{weights}/{{name}}.pth'

picture = {str(picture)!r}
config, checkpoint = files('classifier')
classify = ImageClassificationInferencer(config, checkpoint, device='cpu')
print('class', classify(picture)[0]['pred_class'])
found = DetInferencer(*files('mask_rcnn'), device='cpu')(picture)
print('boxes', len(found['predictions'][0]['bboxes']))
labels = MMSegInferencer(*files('upernet'), device='cpu')(picture)
print('labels', labels['predictions'].shape)
"""
    said = run(sys.executable, '-c', script)
    assert re.search(r'(?m)^boxes [1-9]\d*$', said)
    assert 'labels (96, 128)' in said
    assert re.search(r'class digit \d\n', said)


def test_names_of_classes_come_from_the_config_if_the_file_has_none(
    picture, weights, tmp_path
):
    """And not from COCO or Cityscapes, which the packages would take."""
    for name in ('mask_rcnn', 'upernet'):
        content = torch.load(weights / f'{name}.pth')
        path = tmp_path / f'{name}.pth'
        torch.save(content['state_dict'], path)
        cfg = load_config(str(ROOT / config(f'{name}_dat_digits')))
        sight = look(cfg, str(path), str(picture), score=0.01)
        classes = [line.split()[0] for line in sight.lines]
        assert set(classes) <= {'photograph', *'0123456789'}


@pytest.mark.parametrize('wrong', ['picture', 'checkpoint', 'fit'])
def test_what_is_wrong_is_said_in_one_sentence(
    wrong, picture, weights, tmp_path
):
    arguments = dict(
        picture=picture,
        config=config('classifier_dat_digits'),
        checkpoint=weights / 'classifier.pth',
    )
    message = f'There is no {wrong} nothing'
    if wrong == 'fit':
        arguments['checkpoint'] = weights / 'upernet.pth'
        message = 'for segmentation with UPerNet, the config builds'
    else:
        arguments[wrong] = 'nothing'
    out = tmp_path / 'drawing.png'
    said = demo(*arguments.values(), '--out', out, ok=False)
    assert 'Traceback' not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith('image_demo: ') and message in last
    assert not out.exists()


def test_a_file_that_is_no_picture(tmp_path):
    path = tmp_path / 'picture.jpg'
    path.write_bytes(b'no picture at all')
    with pytest.raises(UserError, match='not a picture that can be read'):
        check_picture(str(path))


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match='--device gpu cannot be used here'):
        choose_device('gpu')
    assert choose_device('cpu') == 'cpu'


def test_a_config_without_a_package_of_its_own(picture, weights):
    cfg = load_config(str(ROOT / config('classifier_dat_digits')))
    cfg.default_scope = 'mmengine'
    with pytest.raises(UserError, match='out of mmdet, mmseg, mmpretrain'):
        look(cfg, str(weights / 'classifier.pth'), str(picture))


def test_folders_and_patterns_stand_for_their_pictures(tmp_path):
    for name in ('b.JPG', 'a.png', 'c.txt'):
        (tmp_path / name).write_bytes(b'')
    both = [f'{tmp_path}/a.png', f'{tmp_path}/b.JPG']
    assert find_pictures(str(tmp_path)) == both
    assert find_pictures(f'{tmp_path}/*.png') == both[:1]
    assert find_pictures('nothing.jpg') == ['nothing.jpg']
    (tmp_path / '[1].png').write_bytes(b'')
    assert find_pictures(f'{tmp_path}/[1].png') == [f'{tmp_path}/[1].png']
    for name in (f'{tmp_path}/*.gif', str(tmp_path.parent / 'empty')):
        (tmp_path.parent / 'empty').mkdir(exist_ok=True)
        with pytest.raises(UserError, match='no pictures|No picture'):
            find_pictures(name)
