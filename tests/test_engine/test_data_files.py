# Copyright (c) mmdat contributors. Apache-2.0 licence.
import pytest
from mmengine.config import Config

from mmdat.engine.data_files import check_data, set_data_root
from mmdat.utils.errors import UserError


def coco(root, **kwargs):
    return dict(
        type='CocoDataset',
        data_root=root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        **kwargs,
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'train.json').write_text('{}')
    (tmp_path / 'train').mkdir()
    return tmp_path


def config(dataset, **kwargs):
    return Config(dict(train_dataloader=dict(dataset=dataset), **kwargs))


def test_data_that_is_there(root):
    check_data(config(coco(f'{root}/')), ('train', 'val'))


@pytest.mark.parametrize('wrap', ['plain', 'repeat', 'concat'])
def test_the_first_missing_file_is_named(root, wrap):
    (root / 'train').rmdir()
    dataset = {
        'plain': coco(f'{root}/'),
        'repeat': dict(type='RepeatDataset', dataset=coco(f'{root}/')),
        'concat': dict(type='Concat', datasets=[coco(f'{root}/')]),
    }[wrap]
    with pytest.raises(UserError, match=f'train data .*{root}/train') as told:
        check_data(config(dataset), ('train',))
    place = {'repeat': '.dataset', 'concat': '.datasets.0'}.get(wrap, '')
    assert f'train_dataloader.dataset{place}.data_root=' in str(told.value)


def test_label_maps_that_nothing_reads_are_not_looked_for(root):
    """As in the host's Mask2Former for instances, made from the panoptic."""
    maps = dict(img='train/', seg='annotations/panoptic/')
    load = dict(type='LoadAnnotations', with_mask=True)
    for pipeline, wanted in (
        ([load], False),
        ([dict(load, with_seg=False)], False),
        ([dict(load, with_seg=True)], True),
        ([dict(type='mmdet.LoadPanopticAnnotations')], True),
        (
            [dict(type='Choice', transforms=[[dict(load, with_seg=True)]])],
            True,
        ),
    ):
        cfg = config(coco(f'{root}/', pipeline=pipeline))
        cfg.train_dataloader.dataset.data_prefix = maps
        if wanted:
            with pytest.raises(UserError, match='annotations/panoptic'):
                check_data(cfg, ('train',))
        else:
            check_data(cfg, ('train',))


def test_data_in_other_file_systems_is_not_looked_for():
    check_data(config(coco('s3://bucket/coco/')), ('train',))
    remote = coco('coco/', backend_args=dict(backend='petrel'))
    check_data(config(remote), ('train',))


def test_folders_of_classes(tmp_path):
    dataset = dict(type='ImageNet', data_root=str(tmp_path), split='train')
    with pytest.raises(UserError, match=f'{tmp_path}/train'):
        check_data(config(dataset), ('train',))
    (tmp_path / 'train').mkdir()
    check_data(config(dataset), ('train',))


def test_data_root_moves_data_sets_and_evaluators():
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=coco('data/coco/')),
            val_dataloader=dict(
                dataset=dict(type='Repeat', dataset=coco('data/coco/'))
            ),
            val_evaluator=dict(ann_file='data/coco/annotations/val.json'),
            test_evaluator=[dict(ann_file='/other/test.json')],
        )
    )
    set_data_root(cfg, '/disk/coco')
    assert cfg.train_dataloader.dataset.data_root == '/disk/coco'
    assert cfg.val_dataloader.dataset.dataset.data_root == '/disk/coco'
    assert cfg.val_evaluator.ann_file == '/disk/coco/annotations/val.json'
    assert cfg.test_evaluator[0].ann_file == '/other/test.json'
