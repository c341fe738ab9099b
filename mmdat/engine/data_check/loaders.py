# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks that loops and loaders of a config can run, and end."""

from collections.abc import Mapping
from inspect import signature
from math import ceil
from typing import Any

from mmengine.config import Config
from torch.utils.data import DataLoader

from ...utils.errors import similar
from ..data_files import datasets_of
from .parts import name_of
from .report import Report, counted

# mmengine needs all three of a split, or none.
_TRIOS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}
# Settings of a loader that mmengine reads itself.
_OF_MMENGINE = (
    'num_batch_per_epoch',
    'disable_subprocess_warning',
    'type',
    '_scope_',
)
_ENDLESS = (
    'InfiniteSampler',
    'MultiDataSourceSampler',
    'GroupMultiSourceSampler',
)


def check_loops(cfg: Config, splits: tuple[str, ...], report: Report) -> None:
    """Checks what mmengine builds loops from.

    Args:
        cfg: The config.
        splits: The splits of the run.
        report: Receives the problems.
    """
    for split, names in _TRIOS.items():
        given = [name for name in names if cfg.get(name) is not None]
        lacking = [name for name in names if name not in given]
        needed = split in splits and split != 'val'
        if lacking and (given or needed):
            many = 'are' if len(lacking) > 1 else 'is'
            advice = '' if needed else f', or all of {split} to None'
            report.error(
                f'{", ".join(names[:2])} and {names[2]} belong together; '
                f'{" and ".join(lacking)} {many} None, so set '
                f'{"them" if len(lacking) > 1 else "it"}{advice}.'
            )
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and type(seed) is not int:
        report.error(
            f'randomness.seed must be a whole number or None; got {seed!r}.'
        )
    hooks = cfg.get('custom_hooks')
    if isinstance(hooks, Mapping):
        report.error(
            'custom_hooks must be a list of hooks; got a dict, so write '
            'custom_hooks=[dict(type=...)].'
        )
    if 'train' in splits:
        _check_lengths(cfg.get('train_cfg') or {}, report)
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if isinstance(loader, Mapping):
            _check_loader(loader, f'{split}_dataloader', report)
            _check_end(cfg, loader, split, report)
        for place, settings in datasets_of(cfg, split):
            _check_wrapper(settings, place, report)


def check_checkpoints(cfg: Config, report: Report) -> None:
    """Warns of checkpoints after epochs where there is only one epoch."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not by_iterations(cfg) or not isinstance(hook, Mapping):
        return
    if hook.get('by_epoch', True):
        report.warn(
            'default_hooks.checkpoint saves after epochs, and '
            'IterBasedTrainLoop has only one, so nothing is saved before the '
            'end of the training; set default_hooks.checkpoint.by_epoch='
            'False and its interval in iterations.'
        )


def by_iterations(cfg: Config) -> bool | None:
    """Returns whether a training counts iterations; None if unknown."""
    loop = cfg.get('train_cfg') or {}
    kind = name_of(loop.get('type'))
    if kind == 'IterBasedTrainLoop':
        return True
    if kind == 'EpochBasedTrainLoop':
        return False
    by_epoch = loop.get('by_epoch')
    return None if kind or by_epoch is None else not by_epoch


def _check_wrapper(
    settings: Mapping[str, Any], place: str, report: Report
) -> None:
    """Reports wrappers of data sets that hold nothing."""
    kind = name_of(settings.get('type'))
    times = settings.get('times', 1)
    if kind == 'RepeatDataset' and (type(times) is not int or times < 1):
        report.error(
            f'{place}.times must be a whole number of at least 1; got '
            f'{times!r}.'
        )
    if kind == 'ConcatDataset' and settings.get('datasets') in ([], ()):
        report.error(f'{place}.datasets must hold a data set; it is empty.')


def _check_lengths(loop: Mapping[str, Any], report: Report) -> None:
    """Checks the numbers of a training loop."""
    for name in ('max_epochs', 'max_iters', 'val_interval'):
        value = loop.get(name)
        if value is not None and (type(value) is not int or value < 1):
            report.error(
                f'train_cfg.{name} must be a whole number of at least 1; got '
                f'{value!r}.'
            )
    total = loop.get('max_epochs', loop.get('max_iters'))
    begin = loop.get('val_begin', 1)
    if type(total) is int and type(begin) is int and begin > total > 0:
        report.warn(
            f'train_cfg.val_begin={begin} is after the end of the training, '
            f'{total}, so the model is never validated.'
        )


def _check_loader(
    loader: Mapping[str, Any], place: str, report: Report
) -> None:
    """Checks the settings of a loader."""
    batched = isinstance(loader.get('batch_sampler'), Mapping)
    least = dict(batch_size=1, num_workers=0)
    if batched and 'batch_size' in loader['batch_sampler']:
        del least['batch_size']
    for name, smallest in least.items():
        value = loader.get(name, smallest)
        if type(value) is not int or value < smallest:
            report.error(
                f'{place}.{name} must be a whole number of at least '
                f'{smallest}; got {value!r}.'
            )
    if loader.get('num_workers', 0) == 0:
        for name in ('persistent_workers', 'prefetch_factor'):
            if loader.get(name):
                report.error(
                    f'{place}.{name} is for workers, and num_workers is 0; '
                    f'raise num_workers or leave out {name}.'
                )
    if 'sampler' not in loader:
        report.error(
            f"{place} needs a sampler, such as dict(type='DefaultSampler', "
            f'shuffle={place.startswith("train")}).'
        )
    elif loader.get('shuffle'):
        report.error(
            f'{place}.shuffle and a sampler exclude each other; set '
            f'{place}.sampler.shuffle instead.'
        )
    known = {*signature(DataLoader.__init__).parameters, *_OF_MMENGINE}
    for name in loader:
        if name not in known:
            report.error(
                f'{place} has no setting {name!r}{similar(name, known)}.'
            )


def _check_end(
    cfg: Config, loader: Mapping[str, Any], split: str, report: Report
) -> None:
    """Reports samplers that never end where an end is needed."""
    sampler = loader.get('sampler')
    kind = name_of(sampler.get('type')) if isinstance(sampler, Mapping) else ''
    if kind not in _ENDLESS:
        return
    place = f'{split}_dataloader.sampler'
    if split != 'train':
        report.error(
            f'{place}.type={kind!r} repeats the data without end, so the '
            f"{split} loop would never end; set it to 'DefaultSampler'."
        )
    elif by_iterations(cfg) is False:
        report.error(
            f'{place}.type={kind!r} repeats the data without end, so an epoch '
            f"would never end; set it to 'DefaultSampler', or "
            f"train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)."
        )


def check_batches(
    cfg: Config,
    split: str,
    pictures: int | None,
    processes: int,
    report: Report,
) -> None:
    """Reports a loader that drops its only batch, as it is incomplete.

    Args:
        cfg: The config.
        split: Whose loader.
        pictures: Samples of an epoch, None if unknown.
        processes: Number of processes of the run.
        report: Receives the problems.
    """
    loader = cfg.get(f'{split}_dataloader') or {}
    batches = loader.get('batch_sampler')
    batches = batches if isinstance(batches, Mapping) else {}
    size = batches.get('batch_size', loader.get('batch_size'))
    sampler = loader.get('sampler') or {}
    if not pictures or type(size) is not int:
        return
    if name_of(sampler.get('type')) != 'DefaultSampler':
        return
    if not (loader.get('drop_last') or batches.get('drop_last')):
        return
    own = ceil(pictures / processes)
    if own < size:
        each = ' in each process' if processes > 1 else ''
        report.error(
            f'{split}_dataloader.drop_last leaves out incomplete batches, and '
            f'{counted(own, "picture")}{each} make no batch of {size}, so '
            f'nothing would be left; lower batch_size or set drop_last=False.'
        )
