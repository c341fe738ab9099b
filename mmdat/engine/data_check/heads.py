# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Numbers of classes: of the heads of a model, and of the data."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from .parts import default_of, find_type, name_of
from .report import Report, counted

# Heads that tell something else apart than the classes of the data, by the
# key or the type they have in a model.
_OTHER_KEYS = ('rpn_head', 'semantic_head', 'task_heads')
_OTHER_TYPES = (
    'RPNHead',
    'GARPNHead',
    'CascadeRPNHead',
    'StageCascadeRPNHead',
    'EmbeddingRPNHead',
    'STDCHead',
    'MultiTaskHead',
    'GroundingDINOHead',
    'ATSSVLFusionHead',
)
# Heads of these names count classes, even where they do not say how many.
_KEYS = (
    'bbox_head',
    'mask_head',
    'mask_iou_head',
    'decode_head',
    'auxiliary_head',
    'head',
)


def _heads(
    node: Any, place: str, key: str = '', inside: bool = False
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Place, key and settings of what may have a number of classes."""
    if isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _heads(child, f'{place}.{i}', key, inside)
    if not isinstance(node, Mapping):
        return
    if key in _OTHER_KEYS or name_of(node.get('type')) in _OTHER_TYPES:
        return
    inside = inside or key.endswith('head')
    if inside:
        yield place, key, node
    for name, child in node.items():
        if name not in ('backbone', 'neck', 'train_cfg', 'test_cfg'):
            yield from _heads(child, f'{place}.{name}', name, inside)


def heads_of(cfg: Config) -> Iterator[tuple[str, int]]:
    """Place and number of classes of every head that tells classes apart.

    A mask head that draws one mask for any class counts none.
    """
    scope = cfg.get('default_scope')
    for place, key, head in _heads(cfg.get('model'), 'model'):
        if head.get('class_agnostic') is True:
            continue
        number = head.get('num_classes')
        if number is None and 'num_things_classes' in head:
            if head.get('num_stuff_classes', 0) == 0:
                yield f'{place}.num_things_classes', head['num_things_classes']
            continue
        if number is None and key in _KEYS and head.get('type'):
            # Not said here, so that of the class counts: 80, most often.
            scoped = head.get('_scope_') or scope
            found = find_type(MODELS, head['type'], scoped)
            number = default_of(found, 'num_classes')
        if type(number) is int:
            yield f'{place}.num_classes', number


def check_heads(cfg: Config, number: int, whose: str, report: Report) -> None:
    """Compares heads with a number of classes.

    Args:
        cfg: The config.
        number: Classes of a data set.
        whose: Where that number comes from.
        report: Takes what is found.
    """
    wrong = [
        (place, found)
        for place, found in heads_of(cfg)
        if found != number and not _binary(cfg, found, number)
    ]
    preprocessor = cfg.get('data_preprocessor') or {}
    inner = (cfg.get('model') or {}).get('data_preprocessor') or {}
    for place, one in (
        ('model.data_preprocessor', inner),
        ('data_preprocessor', {} if inner else preprocessor),
    ):
        found = one.get('num_classes') if isinstance(one, Mapping) else None
        # It counts where labels are mixed, as by Mixup.
        if type(found) is int and found != number and not wrong:
            wrong.append((f'{place}.num_classes', found))
    if not wrong:
        return
    places = ', '.join(f'{place}={found}' for place, found in wrong)
    report.error(
        f'Heads must have as many classes as the data; {whose} '
        f'{"have" if " and " in whose else "has"} '
        f'{counted(number, "class", "classes")}, the model has {places}, so '
        f'set {"them" if len(wrong) > 1 else "it"} to {number}.'
    )


def _binary(cfg: Config, found: int, number: int) -> bool:
    """One output with a threshold tells two classes apart, in mmseg."""
    return found == 1 and number == 2 and cfg.get('default_scope') == 'mmseg'


def most_of_heads(cfg: Config) -> int | None:
    """The number of classes of the first head, if there is one."""
    return next((number for _, number in heads_of(cfg)), None)
