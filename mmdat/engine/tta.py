# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Test-time augmentation, also for configs that do not set it up."""

from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from ..utils.errors import UserError
from .data_files import datasets_of

# How each package merges what it predicts for the augmented pictures.
DEFAULT_TTA_MODELS: dict[str, dict[str, Any]] = {
    'mmdet': dict(
        type='InstanceTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}


def _innermost(cfg: Config) -> list[Any]:
    """The test data sets inside wrappers such as ConcatDataset."""
    return [
        dataset
        for _, dataset in datasets_of(cfg, 'test')
        if 'dataset' not in dataset and 'datasets' not in dataset
    ]


def _flip_pipeline(cfg: Config, dataset: Any) -> list[Any]:
    """The test pipeline, without and with a horizontal flip at its end."""
    *pipeline, pack = deepcopy(dataset.pipeline)
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
    datasets = _innermost(cfg)
    own = cfg.get('tta_pipeline')
    if cfg.get('tta_model') is None:
        if cfg.default_scope not in DEFAULT_TTA_MODELS:
            raise UserError(
                f'Test-time augmentation of {cfg.default_scope} needs a '
                f'tta_model in the config, and {cfg.filename} has none; add '
                f'one, or leave out --tta.'
            )
        cfg.tta_model = DEFAULT_TTA_MODELS[cfg.default_scope]
    for dataset in datasets:
        if own is None and not dataset.get('pipeline'):
            raise UserError(
                f'--tta changes the pipeline of the test data, and '
                f'{cfg.filename} has none; add tta_pipeline.'
            )
        dataset['pipeline'] = own or _flip_pipeline(cfg, dataset)
    if own is None and datasets:
        cfg.tta_pipeline = datasets[0]['pipeline']
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
