# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The data files a config names: finding them, and pointing elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.errors import UserError
from ..utils.json_stream import DamagedJSON, JSONStream, check_encoding


def datasets_of(cfg: Config, split: str) -> Iterator[tuple[str, Any]]:
    """All data sets of a loader, wrappers first, with their place."""
    loader = cfg.get(f'{split}_dataloader')
    if not isinstance(loader, dict):
        return
    waiting = [(f'{split}_dataloader.dataset', loader.get('dataset'))]
    while waiting:
        place, dataset = waiting.pop()
        if not isinstance(dataset, dict):
            continue
        yield place, dataset
        waiting.append((f'{place}.dataset', dataset.get('dataset')))
        inner = dataset.get('datasets')
        if isinstance(inner, list | tuple):
            waiting.extend(
                (f'{place}.datasets.{i}', one) for i, one in enumerate(inner)
            )


def evaluators_of(cfg: Config, split: str) -> list[Any]:
    """The metrics of a split, in whichever way they are given."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics'] or []
    if isinstance(evaluator, list | tuple):
        return list(evaluator)
    return [evaluator]


def set_data_root(cfg: Config, root: str) -> None:
    """Points every data set and evaluator of a config to another folder."""
    for split in ('train', 'val', 'test'):
        old = None
        for _, dataset in datasets_of(cfg, split):
            if 'data_root' in dataset:
                old, dataset['data_root'] = dataset['data_root'], root
        for evaluator in evaluators_of(cfg, split):
            if not isinstance(evaluator, dict):
                continue
            for key, value in evaluator.items():
                if old and isinstance(value, str) and value.startswith(old):
                    rest = value[len(old) :].lstrip('/')
                    evaluator[key] = str(Path(root) / rest)


# Data sets of mmpretrain that fetch what is missing, unless told not to.
_DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')
# Data sets of mmpretrain whose `split` is the name of a folder. In the others
# a split is a file.
_SPLIT_IS_A_FOLDER = ('ImageNet', 'ImageNet21k')


def _type_name(dataset: Any) -> str:
    kind = dataset.get('type')
    return getattr(kind, '__name__', None) or str(kind).rpartition('.')[2]


def _check_json(path: Path) -> None:
    """Raises UserError for truncated annotations.

    Reading the first and last bytes finds most of them quickly. If they look
    unusual, the whole file is read.
    """
    if path.suffix != '.json' or not path.is_file():
        return
    with path.open('rb') as file:
        start = file.read(4096).strip()[:1]
        file.seek(max(path.stat().st_size - 4096, 0))
        end = file.read().strip()[-1:]
    if start + end in (b'{}', b'[]'):
        return
    why = check_encoding(path)
    if why is None:
        try:
            JSONStream(path, {})
            return
        except (DamagedJSON, UnicodeDecodeError) as error:
            why = str(error)
    raise UserError(
        f'Annotations must be a whole JSON file; {path} starts with '
        f'{start!r} and ends with {end!r} ({why}), so copy or download it '
        f'again.'
    )


def _reads_maps(step: Any) -> bool:
    """Whether a step of a COCO pipeline reads label maps, or one in it."""
    if isinstance(step, list | tuple):
        return any(_reads_maps(one) for one in step)
    if not isinstance(step, dict):
        return False
    default = _type_name(step) == 'LoadPanopticAnnotations'
    return bool(step.get('with_seg', default)) or any(
        _reads_maps(value) for value in step.values()
    )


def _named_files(dataset: Any) -> Iterator[Path]:
    """Files and folders that a config says a data set reads here."""
    if dataset.get('backend_args') or dataset.get('file_client_args'):
        return  # read through another file system
    name = _type_name(dataset)
    if dataset.get('download', name in _DOWNLOADED):
        return
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = dict(img_path=prefixes)
    if not isinstance(prefixes, dict):
        prefixes = {}
    if name == 'CocoDataset' and not _reads_maps(dataset.get('pipeline')):
        # Recipes for instances inherit `seg` from those for panoptic maps.
        prefixes = {k: v for k, v in prefixes.items() if k != 'seg'}
    names = [dataset.get('ann_file'), *prefixes.values()]
    if root and name in _SPLIT_IS_A_FOLDER and not any(names):
        names = [dataset.get('split')]
    for name in names:
        if isinstance(name, str) and name and '://' not in f'{root}{name}':
            yield Path(root) / name


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Raises UserError if data that a run needs is not on the disk.

    Only files and folders that the config names are looked for. What a data
    set finds by itself is left to it.

    Args:
        cfg: The config.
        splits: Out of ``'train'``, ``'val'``, ``'test'``.
    """
    for split in splits:
        for place, dataset in datasets_of(cfg, split):
            for path in _named_files(dataset):
                if _exists(path):
                    if _type_name(dataset) == 'CocoDataset':
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
        _check_evaluators(cfg, split)


def _exists(path: Path) -> bool:
    """Whether it is there; mmpretrain knows ``~`` as well."""
    try:
        return path.exists() or path.expanduser().exists()
    except (OSError, RuntimeError):  # a name too long, nobody's home
        return False


def _check_evaluators(cfg: Config, split: str) -> None:
    """Metrics read their files after all data sets have read theirs."""
    metrics = evaluators_of(cfg, split)
    for i, metric in enumerate(metrics):
        if not isinstance(metric, dict) or metric.get('backend_args'):
            continue
        name = metric.get('ann_file')
        if not isinstance(name, str) or not name or '://' in name:
            continue
        if not _exists(Path(name)):
            place = f'{split}_evaluator' + f'.{i}' * (len(metrics) > 1)
            raise UserError(
                f'The annotations to evaluate with are missing: {place}.'
                f'ann_file={name!r} was looked for at '
                f'{Path(name).absolute()}; it does not follow a data_root, so '
                f'set it to the ann_file of the {split} data set.'
            )
