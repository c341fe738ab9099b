# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Errors of a data pipeline that name the files."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ...registry import HOOKS
from ..whole_pictures import check_whole, is_needed


class _NamingCompose(Compose):
    """A pipeline whose errors name the sample.

    Args:
        pipeline: The pipeline as it is.
        classes: Number of classes of the labels, None for no check.
        ignored: The label that is ignored.
    """

    def __init__(
        self, pipeline: Compose, classes: int | None = None, ignored: int = 255
    ) -> None:
        self.transforms = pipeline.transforms
        self.classes, self.ignored = classes, ignored

    def __call__(self, data: dict) -> dict | None:
        # Before the pipeline, as transforms may change what they are given.
        named = {k: data.get(k) for k in ('img_path', 'seg_map_path')}
        try:
            if is_needed():
                for path in filter(None, named.values()):
                    check_whole(path)
            self._check_label(data)
            loaded = 'gt_seg_map' in data
            for transform in self.transforms:
                data = transform(data)
                if data is None:
                    return None
                if not loaded and isinstance(data, dict):
                    loaded = 'gt_seg_map' in data
                    if loaded:
                        self._check_map(data)
            return data
        except Exception as error:
            names = ', '.join(f'{k}={v}' for k, v in named.items() if v)
            raise RuntimeError(
                f'The sample {names} cannot be used: '
                f'{type(error).__name__}: {error}'
            ) from error

    def _check_label(self, data: dict) -> None:
        """Compares the label of a picture with the number of classes."""
        labels = data.get('gt_label')
        if labels is None or self.classes is None:
            return
        flat = np.atleast_1d(labels)
        if flat.dtype.kind not in 'iu':  # of several tasks, or scores
            return
        bad = [int(i) for i in flat if not 0 <= i < self.classes]
        if bad:
            raise ValueError(
                f'its label {bad[0]} is not in 0 to {self.classes - 1}'
            )

    def _check_map(self, data: dict) -> None:
        """Compares a label map with its picture, and with the classes."""
        labels = data['gt_seg_map']
        if self.classes is None or not isinstance(labels, np.ndarray):
            return
        size = data.get('ori_shape')
        if labels.ndim != 2:
            raise ValueError(
                f'its label map has the shape {labels.shape}, and must have '
                f'one channel'
            )
        if size is not None and labels.shape != tuple(size[:2]):
            raise ValueError(
                f'its label map has {labels.shape[0]} rows of '
                f'{labels.shape[1]} pixels, and the picture {size[0]} of '
                f'{size[1]}'
            )
        if labels.size and int(labels.max()) >= self.classes:
            values = np.unique(labels)
            bad = values[(values >= self.classes) & (values != self.ignored)]
            bad = bad[bad != 255]  # what mmseg leaves out
            if len(bad):
                raise ValueError(
                    f'its label map has the label {bad[0]}, as it is loaded, '
                    f'which is neither in 0 to {self.classes - 1} nor the '
                    f'ignored {self.ignored}'
                )


@HOOKS.register_module()
class NameDataHook(Hook):
    """Makes errors of data pipelines name the picture and its labels.

    OpenCV and Pillow do not name a damaged file. OpenCV before 4.11 silently
    fills the missing part of a truncated picture; with this hook that is an
    error for every version.
    Labels outside the classes would end a run in its loss, without a file name
    and, on a GPU, without a reason. This hook checks labels when they are
    loaded.
    """

    def before_run(self, runner: Runner) -> None:
        """Wraps the pipelines of all data sets that are built."""
        for name in ('_train_loop', '_val_loop', '_test_loop'):
            loader = getattr(getattr(runner, name), 'dataloader', None)
            for dataset in _walk(getattr(loader, 'dataset', None)):
                if type(getattr(dataset, 'pipeline', None)) is Compose:
                    dataset.pipeline = _NamingCompose(
                        dataset.pipeline,
                        _classes(dataset, getattr(runner, 'model', None)),
                        getattr(dataset, 'ignore_index', 255),
                    )


def _classes(dataset: Any, model: Any) -> int | None:
    """Number of classes of the labels of a data set, None if unknown.

    For segmentation this is the number of class names; for classification it
    is that of the head, because the data set may have no names.
    """
    model = model.module if is_model_wrapper(model) else model
    if hasattr(dataset, 'reduce_zero_label'):
        names = getattr(dataset, 'metainfo', {}).get('classes')
        return len(names) if names else None
    number = getattr(getattr(model, 'head', None), 'num_classes', None)
    return number if isinstance(number, int) else None


def _walk(dataset: Any) -> Iterator[Any]:
    """A data set and those inside it."""
    if dataset is None:
        return
    yield dataset
    inner = [getattr(dataset, 'dataset', None)]
    for one in inner + list(getattr(dataset, 'datasets', [])):
        yield from _walk(one)
