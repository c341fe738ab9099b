# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Checks that metrics can be computed, before a validation computes them."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from .heads import most_of_heads
from .parts import Part, kinds_of, metrics_of, name_of
from .report import Report, counted, listed

_COCO_KINDS = ('bbox', 'segm', 'proposal', 'proposal_fast')
_COCO = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_RECALLS = ('AR@100', 'AR@300', 'AR@1000')
_RECALLS += ('AR_s@1000', 'AR_m@1000', 'AR_l@1000')
# What mmseg's IoUMetric computes for each of its iou_metrics.
_IOU = dict(
    mIoU=('mIoU', 'mAcc'),
    mDice=('mDice', 'mAcc'),
    mFscore=('mFscore', 'mPrecision', 'mRecall'),
)
_SINGLE = ('precision', 'recall', 'f1-score', 'support')
# Parts of keys and types of models that predict masks.
_MASKED = ('mask', 'ins', 'solo', 'yolact', 'panoptic', 'seg')


def check_evaluators(cfg: Config, split: str, report: Report) -> None:
    """Reports metrics that end in an error when they are computed.

    Args:
        cfg: The config.
        split: Whose evaluators to check.
        report: Receives the problems.
    """
    classes = most_of_heads(cfg)
    for i, metric in enumerate(metrics_of(cfg, split)):
        place = f'{split}_evaluator' + f'.{i}' * (i > 0)
        kind = name_of(metric.get('type'))
        if kind == 'Accuracy':
            _check_topk(metric.get('topk'), f'{place}.topk', classes, report)
        elif kind == 'IoUMetric':
            kinds = kinds_of(metric, 'iou_metrics', 'mIoU')
            unknown = [kind for kind in kinds if kind not in _IOU]
            if unknown:
                report.error(
                    f'{place}.iou_metrics may hold {", ".join(_IOU)}; got '
                    f'{unknown[0]!r}.'
                )
        elif kind == 'CocoMetric':
            kinds = kinds_of(metric, 'metric', 'bbox')
            _check_kinds(cfg, kinds, place, report)
            _check_items(metric, place, report)
    head = (cfg.get('model') or {}).get('head')
    if isinstance(head, Mapping) and head.get('cal_acc'):
        _check_topk(head.get('topk'), 'model.head.topk', classes, report)


def check_ignored_by_metrics(cfg: Config, part: Part, report: Report) -> None:
    """Compares the label that a metric ignores with that of the data."""
    ignored = part.option('ignore_index', 255)
    for i, metric in enumerate(metrics_of(cfg, part.split)):
        if name_of(metric.get('type')) != 'IoUMetric':
            continue
        found = metric.get('ignore_index', 255)
        if found != ignored:
            place = f'{part.split}_evaluator' + f'.{i}' * (i > 0)
            report.error(
                f'A metric must ignore the label that the data ignore; '
                f'{place}.ignore_index is {found} and that of {part.place} '
                f'is {ignored}, so set both to one value.'
            )


def _check_kinds(
    cfg: Config, kinds: list[str], place: str, report: Report
) -> None:
    unknown = [kind for kind in kinds if kind not in _COCO_KINDS]
    if unknown:
        report.error(
            f'{place}.metric may hold {", ".join(_COCO_KINDS)}; got '
            f'{unknown[0]!r}.'
        )
    elif 'segm' in kinds and not _predicts_masks(cfg.get('model') or {}):
        report.error(
            f"{place}.metric has 'segm', which needs masks, and the model "
            f"predicts boxes only, so set it to 'bbox'."
        )


def _check_items(
    metric: Mapping[str, Any], place: str, report: Report
) -> None:
    items = metric.get('metric_items') or ()
    items = [items] if isinstance(items, str) else items
    unknown = [item for item in items if item not in (*_COCO, *_RECALLS)]
    if unknown:
        report.error(
            f'{place}.metric_items may hold {", ".join((*_COCO, *_RECALLS))}; '
            f'got {unknown[0]!r}.'
        )


def _check_topk(
    topk: Any, place: str, classes: int | None, report: Report
) -> None:
    numbers = topk if isinstance(topk, list | tuple) else [topk]
    most = max((n for n in numbers if type(n) is int), default=0)
    if classes is not None and most > classes:
        report.error(
            f'{place} must not be above the number of classes; it has {most} '
            f'and the model has {counted(classes, "class", "classes")}, so '
            f'set it to (1,).'
        )


def _predicts_masks(model: Mapping[str, Any]) -> bool:
    """Returns whether a detector may predict masks."""
    roi_head = model.get('roi_head')
    if isinstance(roi_head, Mapping):
        return bool(roi_head.get('mask_head'))
    return _has_masks(model)


def _has_masks(node: Any) -> bool:
    if isinstance(node, list | tuple):
        return any(map(_has_masks, node))
    if not isinstance(node, Mapping):
        return False
    words = [str(key) for key in node] + [name_of(node.get('type'))]
    return any(
        part in word.lower() for word in words for part in _MASKED
    ) or any(
        _has_masks(child)
        for key, child in node.items()
        if key not in ('data_preprocessor', 'backbone', 'neck')
    )


def check_best(cfg: Config, report: Report) -> None:
    """Reports a ``save_best`` that no metric of the validation computes.

    mmengine's hook ends the run in an error then; ours keeps no best
    checkpoint for it.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    wanted = hook.get('save_best') if isinstance(hook, Mapping) else None
    if not wanted or not cfg.get('val_dataloader'):
        return
    ours = name_of(hook.get('type')) == 'AtomicCheckpointHook'
    tell = report.warn if ours else report.error
    names: list[str] = []
    for metric in metrics_of(cfg, 'val'):
        found = _names(metric)
        if found is None:
            return
        names += found
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if names and name not in ('auto', *names):
            tell(
                f'default_hooks.checkpoint.save_best must be a metric of '
                f'val_evaluator, which computes {listed(names, 9)}; got '
                f'{name!r}{", so no best checkpoint is kept for it" * ours}.'
            )


def _names(metric: Mapping[str, Any]) -> list[str] | None:
    """The names under which a metric is logged, None if unknown."""
    kind, prefix = name_of(metric.get('type')), metric.get('prefix')
    several = isinstance(metric.get('thrs'), list | tuple)
    if kind == 'CocoMetric' and not metric.get('classwise'):
        kinds = kinds_of(metric, 'metric', 'bbox')
        if metric.get('format_only') or not set(kinds) <= {'bbox', 'segm'}:
            return None
        items = metric.get('metric_items') or _COCO
        names = [f'{kind}_{item}' for kind in kinds for item in items]
        prefix = prefix or 'coco'
    elif kind == 'IoUMetric' and not metric.get('format_only'):
        kinds = kinds_of(metric, 'iou_metrics', 'mIoU')
        found = [name for kind in kinds for name in _IOU.get(kind, ())]
        names = ['aAcc', *dict.fromkeys(found)]
    elif kind == 'Accuracy' and not several:
        topk = metric.get('topk', 1)
        topk = topk if isinstance(topk, list | tuple) else [topk]
        names, prefix = [f'top{k}' for k in topk], prefix or 'accuracy'
    elif kind == 'SingleLabelMetric' and not several:
        names = [n + end for n in _SINGLE for end in ('', '_classwise')]
        prefix = prefix or 'single-label'
    else:
        return None
    return [f'{prefix}/{name}' if prefix else name for name in names]
