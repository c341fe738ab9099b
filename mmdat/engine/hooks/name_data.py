# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Errors of a data pipeline that say which files they are about."""

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...registry import HOOKS


class _NamingCompose(Compose):
    """A pipeline whose errors name the sample."""

    def __init__(self, pipeline: Compose) -> None:
        self.transforms = pipeline.transforms

    def __call__(self, data: dict) -> dict | None:
        # Before the pipeline, as transforms may change what they are given.
        named = {k: data.get(k) for k in ('img_path', 'seg_map_path')}
        try:
            return super().__call__(data)
        except Exception as error:
            names = ', '.join(f'{k}={v}' for k, v in named.items() if v)
            raise RuntimeError(
                f'The sample {names} cannot be used: '
                f'{type(error).__name__}: {error}'
            ) from error


@HOOKS.register_module()
class NameDataHook(Hook):
    """Makes errors of data pipelines name the picture and its labels.

    OpenCV and Pillow say that a file is damaged, and leave out which one.
    """

    def before_run(self, runner: Runner) -> None:
        """Wraps the pipelines of all data sets that are built."""
        for name in ('_train_loop', '_val_loop', '_test_loop'):
            loader = getattr(getattr(runner, name), 'dataloader', None)
            for dataset in _walk(getattr(loader, 'dataset', None)):
                if type(getattr(dataset, 'pipeline', None)) is Compose:
                    dataset.pipeline = _NamingCompose(dataset.pipeline)


def _walk(dataset: Any) -> Iterator[Any]:
    """A data set and those inside it."""
    if dataset is None:
        return
    yield dataset
    inner = [getattr(dataset, 'dataset', None)]
    for one in inner + list(getattr(dataset, 'datasets', [])):
        yield from _walk(one)
