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


def _check_json(path: Path) -> None:
    """Raises UserError for annotations that break off, without parsing."""
    with path.open('rb') as file:
        start = file.read(4096).strip()[:1]
        file.seek(max(path.stat().st_size - 4096, 0))
        end = file.read().strip()[-1:]
    if start + end not in (b'{}', b'[]'):
        raise UserError(
            f'Annotations must be a whole JSON file; {path} starts with '
            f'{start!r} and ends with {end!r}, so copy or download it again.'
        )


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Raises UserError if data that a run needs is not on the disk.

    Annotations are also looked at: whether they are a whole file.

    Args:
        cfg: The config.
        splits: Out of ``'train'``, ``'val'``, ``'test'``.
    """
    for split in splits:
        for place, dataset in _datasets(cfg, split):
            for path in _named_files(dataset):
                if path.exists():
                    if path.suffix == '.json' and path.is_file():
                        _check_json(path)
                    continue
                root = dataset.get('data_root')
                raise UserError(
                    f'The {split} data is missing: {path.name} was looked '
                    f'for at {path.absolute()}, as {place}.data_root='
                    f'{root!r} says; if the data lies elsewhere, add '
                    f'--data-root FOLDER or link it, ln -s FOLDER '
                    f'{str(root).rstrip("/") or "data"}.'
                )
