# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Compares the number of classes of a model's heads with the data."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from .parts import default_of, find_type, name_of
from .report import Report, counted

# Heads whose classes are not the classes of the data, by their key or type in
# a model.
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
# Losses that are a softmax unless they are told otherwise.
_SOFTMAX = ('CrossEntropyLoss', 'LabelSmoothLoss')
# Heads with these names have classes, even without a num_classes setting.
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
    """Yields place, key and settings of possible heads."""
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


def _default(
    cfg: Config, head: Mapping[str, Any], name: str, default: Any = None
) -> Any:
    """Returns the default of a setting in the class of a head."""
    scope = head.get('_scope_') or cfg.get('default_scope')
    return default_of(find_type(MODELS, head['type'], scope), name, default)


def heads_of(cfg: Config) -> Iterator[tuple[str, int]]:
    """Yields place and number of classes of each head with classes.

    A class-agnostic mask head has none.
    """
    for place, key, head in _heads(cfg.get('model'), 'model'):
        if head.get('class_agnostic') is True:
            continue
        number = head.get('num_classes')
        if number is None and 'num_things_classes' in head:
            if head.get('num_stuff_classes', 0) == 0:
                yield f'{place}.num_things_classes', head['num_things_classes']
            continue
        if number is None and key in _KEYS and head.get('type'):
            # Without a setting, the default of the class applies: often 80.
            number = _default(cfg, head, 'num_classes')
        if type(number) is int:
            yield f'{place}.num_classes', number


def check_heads(cfg: Config, number: int, whose: str, report: Report) -> None:
    """Compares heads with a number of classes.

    Args:
        cfg: The config.
        number: Number of classes of a data set.
        whose: Source of that number.
        report: Receives the problems.
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
        # The number matters for mixed labels, as in Mixup.
        if type(found) is int and found != number and not wrong:
            wrong.append((f'{place}.num_classes', found))
    if not wrong:
        return
    places = ', '.join(f'{place}={found}' for place, found in wrong)
    report.error(
        f'Heads must have as many classes as the data; {whose} '
        f'{"have" if " and " in whose else "has"} '
        f'{counted(number, "class", "classes")}, and the model has {places}, '
        f'so set {"them" if len(wrong) > 1 else "it"} to {number}.'
    )


def check_ignored(
    cfg: Config, ignored: int, whose: str, report: Report
) -> None:
    """Compares the label that heads of mmseg ignore with that of the data.

    Args:
        cfg: The config.
        ignored: ``ignore_index`` of a data set.
        whose: Its place in the config.
        report: Receives the problems.
    """
    for place, key, head in _heads(cfg.get('model'), 'model'):
        if key not in ('decode_head', 'auxiliary_head'):
            continue
        if not isinstance(head.get('type'), str | type):
            continue
        found = head.get('ignore_index')
        if found is None:
            found = _default(cfg, head, 'ignore_index', 255)
        if found != ignored:
            report.error(
                f'Heads must ignore the label that the data ignore; '
                f'{place}.ignore_index is {found} and that of {whose} is '
                f'{ignored}, so set both to one value.'
            )


def check_weights(cfg: Config, report: Report) -> None:
    """Checks that losses have a weight for each output of their head."""
    for place, key, head in _heads(cfg.get('model'), 'model'):
        number = head.get('num_classes')
        if type(number) is not int or 'out_channels' in head:
            continue
        # Some heads have an output for "no object" besides.
        good = (number, number + 1)
        masked = 'Mask' in name_of(head.get('type'))
        if key in ('head', 'auxiliary_head', 'decode_head') and not masked:
            good = (number,)
        for name, weights in _class_weights(head):
            if len(weights) not in good:
                report.error(
                    f'class_weight must have a weight for each class; '
                    f'{place}.{name}.class_weight has {len(weights)} and '
                    f'the head {counted(number, "class", "classes")}.'
                )


def check_learnable(cfg: Config, report: Report) -> None:
    """Reports heads whose loss is 0 whatever they predict.

    A softmax over one class is 1, so mmseg and mmpretrain learn nothing.
    """
    for place, key, head in _heads(cfg.get('model'), 'model'):
        if key not in ('head', 'decode_head', 'auxiliary_head'):
            continue
        if not isinstance(head.get('type'), str | type):
            continue
        losses = head.get('loss_decode', head.get('loss'))
        losses = losses if isinstance(losses, list | tuple) else [losses]
        softmax = any(
            loss is None
            or name_of(loss.get('type')) in _SOFTMAX
            and not loss.get('use_sigmoid')
            for loss in losses
            if loss is None or isinstance(loss, Mapping)
        )
        named = name_of(head['type'])
        if not softmax or 'Mask' in named or 'MultiLabel' in named:
            continue
        if head.get('num_classes') == 1:
            advice = 'a second class'
            if key != 'head':
                advice = 'a class for the background, num_classes=2'
            report.error(
                f'A softmax needs two classes, as over one it is always 1; '
                f'{place}.num_classes is 1, so its loss would be 0 and it '
                f'would learn nothing; add {advice}.'
            )
        elif head.get('out_channels') == 1 and key != 'head':
            report.error(
                f'One output needs a sigmoid; {place}.out_channels is 1 and '
                f'its loss is a softmax, so set loss_decode.use_sigmoid=True '
                f'or leave out out_channels.'
            )


def check_loss_names(cfg: Config, report: Report) -> None:
    """Warns of losses of mmseg that are logged and not trained on."""
    for place, key, head in _heads(cfg.get('model'), 'model'):
        if key not in ('decode_head', 'auxiliary_head'):
            continue
        losses = head.get('loss_decode')
        several = isinstance(losses, list | tuple)
        for i, loss in enumerate(losses if several else [losses]):
            name = loss.get('loss_name') if isinstance(loss, Mapping) else None
            if isinstance(name, str) and 'loss' not in name:
                report.error(
                    f'mmengine adds up what has "loss" in its name; '
                    f'{place}.loss_decode{f".{i}" * several}.loss_name is '
                    f'{name!r}, so nothing would be learned from it; set it '
                    f"to 'loss_{name}'."
                )


def _class_weights(
    head: Mapping[str, Any],
) -> Iterator[tuple[str, list | tuple]]:
    """Yields the key and the weights of each loss that has a list of them."""
    for name, losses in head.items():
        for loss in losses if isinstance(losses, list) else [losses]:
            if isinstance(loss, Mapping):
                weights = loss.get('class_weight')
                if isinstance(weights, list | tuple):
                    yield name, weights


def _binary(cfg: Config, found: int, number: int) -> bool:
    """Returns whether a head of mmseg has one output for two classes."""
    return found == 1 and number == 2 and cfg.get('default_scope') == 'mmseg'


def most_of_heads(cfg: Config) -> int | None:
    """Returns the number of classes of the first head, if there is one."""
    return next((number for _, number in heads_of(cfg)), None)
