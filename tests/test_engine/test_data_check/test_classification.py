# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Folders and lists of classes against heads, and what is left alone."""

import family
import pytest
from PIL import Image

from mmdat.engine.data_check import check_data_and_model
from mmdat.engine.data_files import check_data, set_data_root
from mmdat.utils.errors import UserError

pytest.importorskip('mmpretrain')
FOLDERS = ('cat', 'dog', 'hen')


@pytest.fixture
def root(tmp_path):
    for split in ('train', 'val'):
        for name in FOLDERS:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new('RGB', (9, 9)).save(tmp_path / split / name / '0.png')
    return tmp_path


def config(root, classes=3, name='classifier_dat_digits'):
    cfg = family.load(name)
    set_data_root(cfg, f'{root}/')
    cfg.model.head.num_classes = classes
    if 'data_preprocessor' in cfg:
        cfg.data_preprocessor.num_classes = classes
    cfg.param_scheduler = []
    return cfg


def check(cfg, splits=('train', 'val')):
    check_data(cfg, splits)
    try:
        warnings = check_data_and_model(cfg, splits)
    except UserError as error:
        return str(error).splitlines(), []
    assert not any('could not be compared' in line for line in warnings)
    return [], warnings


def test_correct_data_gives_no_message(root):
    assert check(config(root)) == ([], [])


@pytest.mark.parametrize('classes', [2, 4, 1000])
def test_heads_of_other_classes(classes, root):
    (said,) = check(config(root, classes))[0]
    assert said.startswith('Heads must have as many classes as the data; ')
    assert 'dataset and val_dataloader.dataset have 3 classes' in said
    assert f'model.head.num_classes={classes}' in said


def test_labels_that_are_mixed(root):
    cfg = config(root)
    cfg.data_preprocessor.num_classes = 1000
    assert 'data_preprocessor.num_classes=1000' in check(cfg)[0][0]


def test_a_config_of_imagenet_on_folders_of_ones_own(root):
    cfg = config(root, 1000, 'classifier_dat_t_in1k')
    (said, *_) = check(cfg)[0]
    assert '1000 classes (those of ImageNet)' in said
    assert '3 folders (cat, dog, hen)' in said and 'num_classes=3' in said


def test_folders_that_differ(root):
    (root / 'val/hen/0.png').unlink()
    (root / 'val/hen').rmdir()
    errors, _ = check(config(root))
    assert any('/val lacks hen, compared with' in line for line in errors)
    (root / 'val/cow').mkdir()
    Image.new('RGB', (9, 9)).save(root / 'val/cow/0.png')
    errors, warnings = check(config(root))
    assert not errors
    assert any('/val has cow and lacks hen' in line for line in warnings)


def test_hidden_folders_count(root):
    (root / 'train/.ipynb_checkpoints').mkdir()
    errors, _ = check(config(root))
    assert any('has .ipynb_checkpoints' in line for line in errors) or any(
        'has 4 classes' in line for line in errors
    )


def test_empty_folders(root):
    (root / 'train/hen/0.png').unlink()
    _, (said,) = check(config(root))
    assert 'no pictures of hen' in said
    for name in FOLDERS:
        (root / 'val' / name / '0.png').unlink()
    assert 'finds no file in the folders of' in check(config(root))[0][0]


def listed(root, text):
    (root / 'train.txt').write_text(text)
    cfg = config(root)
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    return check(cfg, ('train',))


def test_lists_of_labels(root):
    assert listed(root, 'cat/0.png 0\nhen/0.png 2\n') == ([], [])
    (said,) = listed(root, 'cat/0.png 0\nhen/0.png 3\n')[0]
    assert f"line 2 of {root}/train.txt is 'hen/0.png 3'" in said
    assert 'Labels must be 0 to 2' in said
    (said,) = listed(root, 'cat/0.png 0\nhen/0.png hen\n')[0]
    assert 'Every line of ann_file' in said and 'line 2' in said
    (said,) = listed(root, 'no/0.png 0\n')[0]
    assert 'train/no/0.png, does not exist' in said
    assert 'names none' in listed(root, '')[0][0]


OTHERS = {
    'CUB': (dict(split='train'), 200),
    'CIFAR10': (dict(split='train'), 10),
    'CIFAR100': (dict(split='test', data_prefix='data'), 100),
    'MNIST': (dict(split='train', data_prefix='data'), 10),
    'FashionMNIST': (dict(split='train'), 10),
    'Flowers102': (dict(split='trainval'), 102),
    'Food101': (dict(split='train'), 101),
    'StanfordCars': (dict(split='train'), 196),
    'DTD': (dict(split='trainval'), 47),
    'SUN397': (dict(split='train'), 397),
    'Caltech101': (dict(split='train'), 102),
    'FGVCAircraft': (dict(split='trainval'), 100),
    'OxfordIIITPet': (dict(split='trainval'), 37),
    'Places205': (dict(), 205),
    'InShop': (dict(split='query'), 3997),
    'VOC': (dict(split='trainval'), 20),
}


@pytest.mark.parametrize('kind', OTHERS)
def test_data_sets_that_find_their_files_are_left_alone(kind, root):
    settings, classes = OTHERS[kind]
    cfg = config(root, classes)
    dataset = dict(type=kind, data_root=f'{root}/', pipeline=[], **settings)
    cfg.train_dataloader.dataset = dataset
    cfg.val_dataloader.dataset = dict(dataset, type=f'mmpretrain.{kind}')
    assert check(cfg) == ([], [])


def test_their_classes_are_compared_all_the_same(root):
    cfg = config(root, 10)
    cfg.train_dataloader.dataset = dict(
        type='CUB', data_root=f'{root}/', split='train', pipeline=[]
    )
    (said,) = check(cfg, ('train',))[0]
    assert 'has 200 classes' in said and 'model.head.num_classes=10' in said
