# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pickle

import numpy as np
import pytest
import toy
from mmengine.dataset import Compose, ConcatDataset, RepeatDataset

from mmdat.engine.hooks.name_data import _NamingCompose

HOOKS = dict(data_errors=dict(type='mmdat.NameDataHook'))


def spoil(sample):
    if sample['img_path'] == '5.jpg':
        sample.clear()
        raise OSError('image file is truncated')
    return sample


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('wrap', ['plain', 'repeat', 'concat'])
def test_the_picture_is_named(wrap, workers, tmp_path):
    dataset = toy.ToyDataset(pipeline=[spoil, toy.augment])
    if wrap == 'repeat':
        dataset = RepeatDataset(dataset, 2)
    if wrap == 'concat':
        dataset = ConcatDataset(
            [toy.ToyDataset(pipeline=[toy.augment]), dataset]
        )
    run = toy.runner(tmp_path, HOOKS, epochs=1)
    run._train_dataloader.update(dataset=dataset, num_workers=workers)
    with pytest.raises(RuntimeError) as caught:
        run.train()
    assert (
        'The sample img_path=5.jpg cannot be used: OSError: image file is '
        'truncated' in str(caught.value)
    )
    if not workers:
        assert isinstance(caught.value.__cause__, OSError)


def test_pipelines_work_as_before(tmp_path):
    run = toy.runner(tmp_path, HOOKS, epochs=1, validate=True)
    run.train()
    for loop in (run.train_loop, run.val_loop):
        pipeline = loop.dataloader.dataset.pipeline
        assert type(pipeline).__name__ == '_NamingCompose'
        assert pipeline.transforms == [toy.augment]
        assert pickle.loads(pickle.dumps(pipeline)).transforms


def load(labels, size=(4, 5)):
    """A sample through a pipeline that loads this label map."""

    def read(sample):
        return dict(sample, gt_seg_map=labels, ori_shape=size)

    def use(sample):
        raise IndexError('Target 199 is out of bounds.')

    pipeline = _NamingCompose(Compose([read, use]), classes=3)
    with pytest.raises(RuntimeError) as caught:
        pipeline(dict(img_path='a.jpg', seg_map_path='a.png'))
    assert 'img_path=a.jpg, seg_map_path=a.png cannot' in str(caught.value)
    return str(caught.value)


def test_label_maps_are_looked_at_when_they_are_loaded():
    good = np.array([[0, 1, 2, 255, 0]] * 4, np.uint8)
    assert 'IndexError: Target 199' in load(good)  # of the next transform
    assert 'the label 199, as it is loaded' in load(good + (good == 2) * 197)
    assert 'must have one channel' in load(np.zeros((4, 5, 3), np.uint8))
    assert '4 rows of 5 pixels, and the picture 5 of 4' in load(good, (5, 4))


@pytest.mark.parametrize('label', [3, -1, [0, 7], np.array([5])])
def test_labels_of_pictures_are_looked_at(label):
    pipeline = _NamingCompose(Compose([dict]), classes=3)
    assert pipeline(dict(img_path='a.jpg', gt_label=2))['gt_label'] == 2
    with pytest.raises(RuntimeError, match='a.jpg cannot .*not in 0 to 2'):
        pipeline(dict(img_path='a.jpg', gt_label=label))
