# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Test-time augmentation, also for configs that do not set it up."""

from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from ..utils.errors import UserError

# How each package merges what it predicts for the augmented pictures.
DEFAULT_TTA_MODELS: dict[str, dict[str, Any]] = {
    'mmdet': dict(
        type='InstanceTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}


def _innermost(dataset: Any) -> Any:
    """The data set inside wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def _flip_pipeline(cfg: Config) -> list[Any]:
    """The test pipeline, without and with a horizontal flip at its end."""
    *pipeline, pack = deepcopy(
        _innermost(cfg.test_dataloader.dataset).pipeline
    )
    if cfg.default_scope == 'mmdet':
        keys = pack.get('meta_keys') or (
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        )
        pack['meta_keys'] = (*keys, 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    return [*pipeline, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def enable_tta(cfg: Config, drawing: bool = False) -> None:
    """Tests with augmentation: as the config says, else with a flip.

    Args:
        cfg: The config to change.
        drawing: Whether pictures are wanted as well.

    Raises:
        UserError: The config's package can not draw augmented pictures.
    """
    if drawing and cfg.default_scope == 'mmpretrain':
        raise UserError(
            'mmpretrain cannot draw pictures with test-time augmentation; '
            'leave out --tta or --show-dir.'
        )
    if cfg.default_scope == 'mmdet':
        from . import instance_tta  # noqa: F401, registers InstanceTTAModel
    if 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = _flip_pipeline(cfg)
    if 'tta_model' not in cfg:
        cfg.tta_model = DEFAULT_TTA_MODELS[cfg.default_scope]
    _innermost(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
