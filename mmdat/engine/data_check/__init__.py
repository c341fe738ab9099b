# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks the data of a config against its model, before the first iteration.

The checks report problems that would stop a training later, or would train
something other than intended, in one sentence each. They read files in the
layouts of MMDetection's ``CocoDataset``, MMSegmentation's ``BaseSegDataset``
and MMPretrain's ``CustomDataset``. They skip other layouts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmengine.config import Config

from ..data_files import datasets_of
from . import classification, detection, segmentation
from .channels import check_channels
from .class_names import check_same_names
from .heads import (
    check_heads,
    check_ignored,
    check_learnable,
    check_loss_names,
    check_weights,
    most_of_heads,
)
from .leakage import check_leakage
from .loaders import check_batches, check_checkpoints, check_loops
from .metrics import check_best, check_evaluators, check_ignored_by_metrics
from .optimizers import check_old_keys, check_optimizer
from .parts import Part, name_of, parts_of
from .preprocessing import check_padding, check_preprocessing
from .report import Report
from .schedule import check_schedule, check_warm_up
from .strides import check_strides

__all__ = ['check_data_and_model']


def check_data_and_model(
    cfg: Config,
    splits: tuple[str, ...],
    channels: Sequence[int] | None = None,
    processes: int = 1,
    strides: Sequence[int] | None = None,
) -> list[str]:
    """Compares data sets, evaluators and model of a config.

    Args:
        cfg: The config.
        splits: The splits to check, out of ``'train'``, ``'val'``,
            ``'test'``.
        channels: Channels of the backbone's output maps, if known.
        processes: Number of processes of the run.
        strides: Strides of these maps in pixels, if known.

    Returns:
        Warnings, for problems that do not prevent the run.

    Raises:
        UserError: With one sentence for each problem that prevents the run.
    """
    report = Report()
    with _leaving_alone('loops and loaders', report):
        check_loops(cfg, splits, report)
        check_old_keys(cfg, report)
    if 'train' in splits:
        with _leaving_alone('optim_wrapper', report):
            check_optimizer(cfg, report)
            check_checkpoints(cfg, report)
    if strides is not None:
        with _leaving_alone('model', report):
            check_strides(cfg, strides, report)
    if channels is not None:
        with _leaving_alone('model', report):
            check_channels(cfg, channels, report)
    lengths: dict[str, int | None] = {}
    parts: list[Part] = []
    numbers: dict[int, list[str]] = {}
    for split in splits:
        own = parts_of(cfg, split)
        for part in own:
            with _leaving_alone(part.place, report):
                lengths[part.place] = _check_part(cfg, part, report)
                number = _classes(part)
                if number:
                    numbers.setdefault(number, []).append(part.place)
        with _leaving_alone(f'{split}_evaluator', report):
            detection.check_metrics(cfg, split, own, report)
            check_evaluators(cfg, split, report)
        parts += own
    with _leaving_alone('model', report):
        for number, places in numbers.items():
            check_heads(cfg, number, ' and '.join(places), report)
        check_weights(cfg, report)
        if 'train' in splits:
            check_learnable(cfg, report)
            check_loss_names(cfg, report)
        for part in parts:
            if part.kind == 'maps' and part.split == 'train':
                ignored = part.option('ignore_index', 255)
                check_ignored(cfg, ignored, part.place, report)
                check_padding(cfg, ignored, part.place, report)
            if part.kind == 'maps':
                check_ignored_by_metrics(cfg, part, report)
    with _leaving_alone('data_preprocessor', report):
        check_preprocessing(cfg, parts, report)
    with _leaving_alone('train and val', report):
        check_leakage(parts, report)
    with _leaving_alone('the order of classes', report):
        check_same_names(parts, report)
        coco = [part for part in parts if part.kind == 'coco']
        detection.check_order(coco, report)
        folders = [part for part in parts if part.kind == 'folders']
        classification.check_same_folders(folders, report)
    if 'train' in splits and 'val' in splits:
        with _leaving_alone('save_best', report):
            check_best(cfg, report)
    if 'train' in splits:
        with _leaving_alone('param_scheduler', report):
            pictures = _length(cfg, lengths)
            check_warm_up(cfg, pictures, processes, report)
            check_schedule(cfg, pictures, processes, report)
    for split in splits:
        with _leaving_alone(f'{split}_dataloader', report):
            number = _length(cfg, lengths, split)
            check_batches(cfg, split, number, processes, report)
    report.raise_errors()
    return report.warnings


@contextmanager
def _leaving_alone(what: str, report: Report) -> Iterator[None]:
    """Turns an unexpected error of a check into a warning."""
    try:
        yield
    except Exception as error:
        report.warn(
            f'{what} could not be compared with the model, so this check was '
            f'skipped ({type(error).__name__}: {error}).'
        )


def _check_part(cfg: Config, part: Part, report: Report) -> int | None:
    """Checks a data set; returns its number of pictures, if known."""
    if part.kind == 'coco':
        return detection.check_part(part, report)
    if part.kind == 'maps':
        return segmentation.check_part(part, report)
    if part.kind == 'folders':
        return classification.check_part(part, report, most_of_heads(cfg))
    return None


def _classes(part: Part) -> int | None:
    """Returns the number of classes of a data set, None if unknown."""
    if part.kind == 'folders':
        return classification.number_of_classes(part)
    return len(part.classes) if _plain(part) else None


def _plain(part: Part) -> bool:
    """Returns whether heads need one output per class of the data set."""
    metainfo = getattr(part.type, 'METAINFO', {})
    # Panoptic data sets have two kinds of classes, and data sets with texts
    # have open ones.
    return not (
        part.classes is None
        or 'thing_classes' in metainfo
        or part.option('return_classes', False)
    )


def _length(
    cfg: Config, lengths: dict[str, int | None], split: str = 'train'
) -> int | None:
    """Returns the samples of an epoch, including wrappers."""
    total: int | None = 0
    times: dict[str, int] = {}
    for place, settings in datasets_of(cfg, split):
        own = times.get(place.rpartition('.dataset')[0], 1)
        if '.datasets.' in place:
            own = times.get(place.rpartition('.datasets.')[0], own)
        if 'dataset' in settings:
            if name_of(settings.get('type')) == 'RepeatDataset':
                own *= int(settings.get('times', 1))
            elif name_of(settings.get('type')) != 'MultiImageMixDataset':
                return None
            times[place] = own
        elif 'datasets' in settings:
            if name_of(settings.get('type')) != 'ConcatDataset':
                return None
            times[place] = own
        else:
            length = lengths.get(place)
            if length is None:
                return None
            total += own * length
    return total or None
