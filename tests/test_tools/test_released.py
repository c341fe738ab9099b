# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Files in the released layouts, of full size, through the command line.

The truth of the little data sets is what the model says that gets the same
weights in the plainest way, so a perfect score means that it was found again.
"""

import pickle
import re

import numpy as np
import pytest
import released
import released_heads
import small_data
import torch
from mmengine.config import DictAction
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from mmdat import DAT
from mmdat.checkpoints.released import rename
from mmdat.engine.configuration import load_config
from mmdat.engine.data_files import set_data_root

from .conftest import ROOT, tool

CONVERTER = 'model_converters/convert_released.py'
SMALL = 'test_dataloader.dataset.pipeline.1.scale=(160,128)'
ALONE = (
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
)


def picture(height, width):
    """Coloured blobs, as smooth as a photograph."""
    random = np.random.default_rng(height + width)
    noise = random.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def evaluate(config, file, data, work_dir, *options, out=None):
    """Runs tools/test.py; returns its log."""
    log = tool(
        'test.py',
        f'configs/{config}.py',
        file,
        '--data-root',
        data,
        '--work-dir',
        work_dir,
        *(() if out is None else ('--out', out)),
        '--cfg-options',
        *ALONE,
        *options,
    )
    for word in ('missing keys', 'unexpected key', 'size mismatch'):
        assert word not in log
    assert 'WARNING' not in log.replace('WARNING - The prefix is not set', '')
    return log


def metric(log, name):
    """The last number that the log gives a metric."""
    return float(re.findall(rf'{name}: +(-?[0-9.]+)', log)[-1])


def plainly(config, entries, data, *options):
    """A model of a config with these weights, and its test data."""
    cfg = load_config(str(ROOT / f'configs/{config}.py'))
    cfg.merge_from_dict(
        {
            key: DictAction._parse_iterable(value)
            for key, value in (option.split('=') for option in options)
        }
    )
    set_data_root(cfg, str(data))
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    model.load_state_dict(
        {
            f'backbone.{rename(name.removeprefix("backbone."))}'
            if name.startswith('backbone.')
            else name: value
            for name, value in entries.items()
        }
    )
    return model, DATASETS.build(cfg.test_dataloader.dataset)


def predict(model, dataset):
    """What the model says of the first picture."""
    with torch.no_grad():
        return model.test_step(pseudo_collate([dataset[0]]))[0]


CLASSIFIERS = {
    'v1-dat_tiny': ('classifier_dat_t_in1k', 'dat_t'),
    'pp-dat_tiny': ('classifier_dat_pp_t_in1k', 'dat_pp_t'),
}


def prepare(image):
    """(3, 224, 224), as the authors' data loader does it."""
    image = image.resize((256, 256), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.crop((16, 16, 240, 240))) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(pixels.transpose(2, 0, 1)).float()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'converted'), [('v1-dat_tiny', False), ('pp-dat_tiny', True)]
)
def test_classification(tmp_path, name, converted):
    config, arch = CLASSIFIERS[name]
    entries = released.state_dict(f'keys-{name}')
    file, data = tmp_path / 'released.pth', tmp_path / 'data'
    released.save_classification(file, entries)
    if converted:
        said = tool(CONVERTER, file, tmp_path / 'ours.pth')
        file = next(tmp_path.glob('ours-????????.pth'))
        assert 'DAT-T++ for classification at 224' in said
        assert re.search(r'arch +dat_pp_t\n', said)
        assert re.search(r'epochs +300\n', said)
        assert re.search(r'parameters +23,962,876\n', said)
        assert re.search('left out +optimizer, lr_scheduler, max', said)
        assert str(file) in said
    backbone = DAT(arch, out_indices=(3,)).eval()
    backbone.load_state_dict(entries)
    images = [picture(150, 200), picture(300, 210)]
    with torch.no_grad():
        (features,) = backbone(torch.stack([prepare(i) for i in images]))
    scores = torch.nn.functional.linear(
        features.mean((2, 3)),
        entries['cls_head.weight'],
        entries['cls_head.bias'],
    ).softmax(1)
    best = scores.argsort(1, descending=True)
    # The first will be right, of the second the runner-up is the truth.
    labels = best[0, 0].item(), best[1, 1].item()
    small_data.imagenet(data, list(zip(images, labels, strict=True)))
    out = tmp_path / 'out.pkl'
    log = evaluate(config, file, data, tmp_path / 'work', out=out)
    assert metric(log, 'accuracy/top1') == 50
    assert metric(log, 'accuracy/top5') == 100
    found = pickle.loads(out.read_bytes())
    found = torch.stack([sample['pred_score'] for sample in found])
    torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_detection(tmp_path):
    config = 'mask_rcnn_dat_pp_t_coco'
    entries = released.dense_state_dict(released_heads.mask_rcnn('tiny'))
    file, data = tmp_path / 'released.pth', tmp_path / 'data'
    released.save_dense(file, entries, ('person', 'bicycle'), epoch=12)
    image = picture(96, 120)
    small_data.coco(tmp_path / 'draft', [(image, 1, (0, 0, 9, 9))])
    model, dataset = plainly(config, entries, tmp_path / 'draft', SMALL)
    found = predict(model, dataset).pred_instances
    best = found.scores.argmax()
    # The mask becomes the truth as it is, the box as far as 1/1000 pixel.
    x1, y1, x2, y2 = (round(float(v), 3) for v in found.bboxes[best])
    category = small_data.COCO_IDS[found.labels[best]]
    small_data.coco(
        data,
        [(image, category, (x1, y1, x2 - x1, y2 - y1))],
        found.masks[best].numpy(),
    )
    log = evaluate(config, file, data, tmp_path / 'work', SMALL)
    assert metric(log, 'coco/bbox_mAP') == 1
    assert metric(log, 'coco/segm_mAP') == 1


@pytest.mark.slow
def test_segmentation(tmp_path):
    config = 'semantic_fpn_dat_pp_t_ade20k'
    entries = released.dense_state_dict(released_heads.semantic_fpn('tiny'))
    file, data = tmp_path / 'released.pth', tmp_path / 'data'
    image = picture(96, 120)
    small_data.ade20k(tmp_path / 'draft', [(image, np.ones((96, 120)))])
    model, dataset = plainly(config, entries, tmp_path / 'draft', SMALL)
    entries.update(statistics(model, dataset))
    released.save_dense(
        file, entries, ('wall', 'building'), PALETTE=[[1, 2, 3], [4, 5, 6]]
    )
    labels = predict(model, dataset).pred_sem_seg.data[0].numpy() + 1
    assert len(np.unique(labels)) > 5
    labels[:20] = 0  # of no class, so not counted
    small_data.ade20k(data, [(image, labels)])
    log = evaluate(config, file, data, tmp_path / 'work', SMALL)
    assert metric(log, 'aAcc') == 100 and metric(log, 'mIoU') == 100


def statistics(model, dataset):
    """Gives batch norms those of a picture, so that labels differ in it."""
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    }
    for norm in norms.values():
        norm.momentum = 1
        norm.train()
    predict(model, dataset)
    model.eval()
    return {
        f'{name}.{kind}': getattr(norm, kind).clone()
        for name, norm in norms.items()
        for kind in ('running_mean', 'running_var', 'num_batches_tracked')
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ('shapes', 'what', 'why'),
    [
        (
            released_heads.mask_rcnn('small'),
            'DAT-S++ for detection with Mask R-CNN',
            r'\d+ entries are of another shape \(backbone\.patch_embed\.',
        ),
        (
            released_heads.cascade_mask_rcnn('tiny'),
            'DAT-T++ for detection with Cascade Mask R-CNN',
            r'\d+ entries are missing \(neck\.fpn_convs\.4\.',
        ),
    ],
)
def test_another_model_is_refused(tmp_path, shapes, what, why):
    file = tmp_path / 'released.pth'
    released.save_shapes(file, shapes, 'state_dict')
    small_data.coco(tmp_path / 'data', [(picture(64, 64), 1, (0, 0, 9, 9))])
    said = tool(
        'test.py',
        'configs/mask_rcnn_dat_pp_t_coco.py',
        file,
        '--data-root',
        tmp_path / 'data',
        '--work-dir',
        tmp_path / 'work',
        ok=False,
    )
    assert re.match(
        re.escape(
            f'test: {file} is {what}, the config builds DAT-T++ for detection '
            f'with Mask R-CNN; '
        )
        + why,
        said.splitlines()[-1],
    )
    assert 'Traceback' not in said
