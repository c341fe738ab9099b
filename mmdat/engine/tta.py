# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Test-time augmentation, also for configs that do not set it up."""

from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

# How each package merges what it predicts for the augmented pictures.
DEFAULT_TTA_MODELS: dict[str, dict[str, Any]] = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}


def _flip_pipeline(cfg: Config) -> list[Any]:
    """The test pipeline, with and without a horizontal flip at its end."""
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    pipeline = deepcopy(dataset.pipeline)
    pack = pipeline[-1]
    if cfg.default_scope in ('mmdet', 'mmseg'):
        keys = list(
            pack.get('meta_keys')
            or ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        )
        pack['meta_keys'] = tuple(
            dict.fromkeys([*keys, 'flip', 'flip_direction'])
        )
    flips = [
        dict(type='RandomFlip', prob=prob)
        | ({} if cfg.default_scope == 'mmpretrain' else {})
        for prob in (0.0, 1.0)
    ]
    return [
        *pipeline[:-1],
        dict(type='TestTimeAug', transforms=[flips, [pack]]),
    ]


def enable_tta(cfg: Config) -> None:
    """Tests with augmentation: as the config says, else with a flip."""
    if 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = _flip_pipeline(cfg)
    if 'tta_model' not in cfg:
        cfg.tta_model = DEFAULT_TTA_MODELS[cfg.default_scope]
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
