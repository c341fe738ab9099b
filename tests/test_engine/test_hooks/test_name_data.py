# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pickle

import pytest
import toy
from mmengine.dataset import ConcatDataset, RepeatDataset

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
