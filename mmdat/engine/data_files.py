# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The data files a config names: finding them, and pointing elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.errors import UserError


def _datasets(cfg: Config, split: str) -> Iterator[tuple[str, Any]]:
    """All data sets of a loader with their place in the config."""
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        return
    waiting = [(f'{split}_dataloader.dataset', loader.get('dataset'))]
    while waiting:
        place, dataset = waiting.pop()
        if not isinstance(dataset, dict):
            continue
        yield place, dataset
        waiting.append((f'{place}.dataset', dataset.get('dataset')))
        for i, inner in enumerate(dataset.get('datasets', [])):
            waiting.append((f'{place}.datasets.{i}', inner))


def _evaluators(cfg: Config, split: str) -> list[Any]:
    evaluator = cfg.get(f'{split}_evaluator') or []
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    return list(evaluator) if isinstance(evaluator, list) else [evaluator]


def set_data_root(cfg: Config, root: str) -> None:
    """Points every data set and evaluator of a config to another folder."""
    for split in ('train', 'val', 'test'):
        old = None
        for _, dataset in _datasets(cfg, split):
            if 'data_root' in dataset:
                old, dataset['data_root'] = dataset['data_root'], root
        for evaluator in _evaluators(cfg, split):
            for key, value in evaluator.items():
                if old and isinstance(value, str) and value.startswith(old):
                    rest = value[len(old) :].lstrip('/')
                    evaluator[key] = str(Path(root) / rest)


def _named_files(dataset: Any) -> Iterator[Path]:
    """Files and folders that a data set reads on this machine."""
    if dataset.get('backend_args') or dataset.get('file_client_args'):
        return  # read through another file system
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = dict(img_path=prefixes)
    names = [dataset.get('ann_file'), *prefixes.values()]
    split = dataset.get('split')  # of mmpretrain's ImageNet
    if root and split and not any(names):
        names = [split]
    for name in (name for name in names if name):
        if '://' not in f'{root}{name}':
            yield Path(root) / name


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Raises UserError if data that a run needs is not on the disk.

    Args:
        cfg: The config.
        splits: Out of ``'train'``, ``'val'``, ``'test'``.
    """
    for split in splits:
        for place, dataset in _datasets(cfg, split):
            for path in _named_files(dataset):
                if path.exists():
                    continue
                root = dataset.get('data_root')
                raise UserError(
                    f'The {split} data is missing: {path.name} was looked '
                    f'for at {path.absolute()}, as {place}.data_root='
                    f'{root!r} says; if the data lies elsewhere, add '
                    f'--data-root FOLDER or link it, ln -s FOLDER '
                    f'{str(root).rstrip("/") or "data"}.'
                )
