# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks the settings of an optimizer that are read late, or not at all."""

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ...utils.errors import similar
from .parts import find_type, name_of
from .report import Report

_CLIPS = {'norm': clip_grad_norm_, 'value': clip_grad_value_}
_CONSTRUCTOR = 'DefaultOptimWrapperConstructor'
_PARAMWISE = (
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'flat_decay_mult',
    'dwconv_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)
# Keys of a config for MMCV 1.x, and what MMEngine reads instead.
_OLD = {
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper',
    'lr_config': 'param_scheduler',
    'data': 'train_dataloader, val_dataloader and test_dataloader',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'fp16': "optim_wrapper.type='AmpOptimWrapper'",
    'resume_from': 'load_from, with resume=True',
}
# Keys of MMCV 1.x inside `data`, which may be another variable.
_OLD_DATA = ('samples_per_gpu', 'workers_per_gpu', 'train', 'val', 'test')


def check_optimizer(cfg: Config, report: Report) -> None:
    """Reports settings that end a training late, or that nothing reads."""
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, Mapping):
        return
    _check_type(cfg, wrapper.get('optimizer'), report)
    _check_rate(wrapper.get('optimizer'), report)
    _check_clipping(wrapper.get('clip_grad'), report)
    counts = wrapper.get('accumulative_counts', 1)
    if type(counts) is not int or counts < 1:
        report.error(
            f'optim_wrapper.accumulative_counts must be a whole number of at '
            f'least 1; got {counts!r}.'
        )
    if name_of(wrapper.get('constructor') or _CONSTRUCTOR) == _CONSTRUCTOR:
        _check_paramwise(wrapper.get('paramwise_cfg'), report)


def check_old_keys(cfg: Config, report: Report) -> None:
    """Warns of keys of MMCV 1.x, which MMEngine does not read."""
    for old, new in _OLD.items():
        value = cfg.get(old)
        if not isinstance(value, Mapping) and type(value) is not int:
            continue
        if old == 'optimizer' and _is_variable(cfg, value):
            continue
        if old == 'data' and not any(key in value for key in _OLD_DATA):
            continue
        report.warn(
            f'{old} is a key of MMCV 1.x that MMEngine does not read, so it '
            f'has no effect; set {new} instead.'
        )


def _is_variable(cfg: Config, optimizer: Mapping[str, Any]) -> bool:
    """Returns whether `optimizer` is what a base made optim_wrapper from."""
    wrapper = cfg.get('optim_wrapper')
    used = wrapper.get('optimizer') if isinstance(wrapper, Mapping) else None
    if not isinstance(used, Mapping) or 'type' not in optimizer:
        return False
    same = name_of(used.get('type')) == name_of(optimizer['type'])
    return not same or dict(used) == dict(optimizer)


def _check_type(cfg: Config, optimizer: Any, report: Report) -> None:
    """Reports an optimizer that nothing has registered."""
    kind = optimizer.get('type') if isinstance(optimizer, Mapping) else None
    scope = cfg.get('default_scope')
    if not isinstance(kind, str) or find_type(OPTIMIZERS, kind, scope):
        return
    with OPTIMIZERS.switch_scope_and_registry(scope) as registry:
        # It may be a function, which find_type does not return.
        if registry.get(kind) is not None:
            return
    plain = kind.rpartition('.')[2]
    report.error(
        f'optim_wrapper.optimizer.type must be a registered optimizer; got '
        f'{kind!r}{similar(plain, OPTIMIZERS.module_dict)}.'
    )


def _check_rate(optimizer: Any, report: Report) -> None:
    if not isinstance(optimizer, Mapping) or 'lr' not in optimizer:
        return
    rate = optimizer['lr']
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not number or not 0 <= rate < float('inf'):
        report.error(
            f'optim_wrapper.optimizer.lr must be a number above 0; got '
            f'{rate!r}.'
        )
    elif rate == 0:
        report.warn(
            'optim_wrapper.optimizer.lr is 0, so the training does not change '
            'the weights.'
        )


def _check_clipping(clip: Any, report: Report) -> None:
    place = 'optim_wrapper.clip_grad'
    if clip is None:
        return
    if not isinstance(clip, Mapping):
        report.error(
            f'{place} must be a dict, such as dict(max_norm=5); got {clip!r}.'
        )
        return
    if not clip:
        return
    kind = clip.get('type', 'norm')
    if kind not in _CLIPS:
        report.error(f"{place}.type must be 'norm' or 'value'; got {kind!r}.")
        return
    _, needed, *others = signature(_CLIPS[kind]).parameters
    for name in clip:
        if name not in ('type', needed, *others):
            report.error(
                f'{place} has no setting {name!r}'
                f'{similar(name, [needed, *others])}.'
            )
            return
    most = clip.get(needed)
    if not isinstance(most, int | float) or most <= 0:
        report.error(
            f'{place}.{needed} must be a number above 0; got {most!r}.'
        )


def _check_paramwise(settings: Any, report: Report) -> None:
    """Names settings that mmengine's constructor passes over in silence."""
    if not isinstance(settings, Mapping):
        return
    place = 'optim_wrapper.paramwise_cfg'
    _tell_unread(settings, _PARAMWISE, place, report)
    custom = settings.get('custom_keys')
    for key, values in (custom or {}).items():
        if isinstance(values, Mapping):
            # Any other key is a setting of the optimizer's group.
            for name in values:
                near = similar(name, ('lr_mult', 'decay_mult'))
                if name not in ('lr_mult', 'decay_mult') and near:
                    report.error(
                        f'{place}.custom_keys[{key!r}] has no setting '
                        f'{name!r}{near}.'
                    )


def _tell_unread(
    settings: Mapping[str, Any],
    known: Iterable[str],
    place: str,
    report: Report,
) -> None:
    for name in settings:
        if name not in known:
            near = similar(name, known)
            (report.error if near else report.warn)(
                f'{place} has the setting {name!r}, which '
                f'{_CONSTRUCTOR} does not read{near}.'
            )


def unmatched_keys(cfg: Config, names: Iterable[str]) -> list[str]:
    """Returns the custom_keys that are part of no parameter's name.

    Args:
        cfg: The config.
        names: Of all parameters.
    """
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, Mapping):
        return []
    if name_of(wrapper.get('constructor') or _CONSTRUCTOR) != _CONSTRUCTOR:
        return []
    settings = wrapper.get('paramwise_cfg')
    custom = settings.get('custom_keys') if settings else None
    names = list(names)
    return [
        key for key in custom or {} if not any(key in name for name in names)
    ]
