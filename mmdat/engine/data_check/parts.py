# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Finds the data sets of a config, their files and their classes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, Registry

from ..data_files import datasets_of, evaluators_of

# Modules that define the reading method of data sets with known rules. Classes
# that override the reading method are not checked.
_READERS = {
    'mmdet.datasets.coco': 'coco',
    'mmseg.datasets.basesegdataset': 'maps',
    'mmpretrain.datasets.custom': 'folders',
}
_MAKERS_OF_FOLDERS = (
    'mmpretrain.datasets.custom',
    'mmpretrain.datasets.imagenet',
)


@dataclass(frozen=True)
class Part:
    """A data set of a config, without the wrappers around it.

    Attributes:
        split: ``'train'``, ``'val'`` or ``'test'``.
        place: Its place in the config.
        settings: Its settings.
        type: Its class, None if the class cannot be found.
        kind: Layout of its files: ``'coco'``, ``'maps'`` (of labels),
            ``'folders'`` (of classes), or None for another layout.
    """

    split: str
    place: str
    settings: Mapping[str, Any]
    type: type | None
    kind: str | None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, None if unknown."""
        metainfo = self.settings.get('metainfo') or {}
        names = metainfo.get('classes')
        if names is None:
            names = self.settings.get('classes')
        if names is None:
            names = getattr(self.type, 'METAINFO', {}).get('classes')
        if isinstance(names, str):
            path = Path(names)
            if not path.is_file():
                return None
            return tuple(path.read_text().splitlines())
        return None if names is None else tuple(names)

    def option(self, name: str, default: Any = None) -> Any:
        """Returns a setting, or the default of the class."""
        if name in self.settings:
            return self.settings[name]
        return default_of(self.type, name, default)

    def path(self, name: Any) -> Path:
        """Returns the path of a file or folder, as mmengine joins it."""
        return Path(self.settings.get('data_root') or '') / str(name or '')

    def prefix(self, *keys: str) -> Path | None:
        """Returns the folder that ``data_prefix`` has for one of the keys."""
        prefix = self.option('data_prefix')
        if isinstance(prefix, str):
            return self.path(prefix)
        for key in keys:
            if isinstance(prefix, Mapping) and prefix.get(key) is not None:
                return self.path(prefix[key])
        return None

    @property
    def annotations(self) -> Path | None:
        """The file of annotations, if there is one."""
        name = self.option('ann_file')
        return self.path(name) if isinstance(name, str) and name else None

    def transforms(self, name: str) -> list[Mapping[str, Any]]:
        """Returns the transforms whose type name ends with `name`."""
        return [
            node
            for node in _nodes(self.settings.get('pipeline'))
            if name_of(node.get('type')).endswith(name)
        ]

    @property
    def is_local(self) -> bool:
        """Whether its files are read from this machine."""
        return not any(
            self.settings.get(name)
            for name in ('backend_args', 'file_client_args')
        ) and '://' not in str(self.settings.get('data_root'))


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        if 'type' in node:
            yield node
        for child in node.values():
            yield from _nodes(child)
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _nodes(child)


def name_of(kind: Any) -> str:
    """Returns the name of a type in a config, without its package."""
    if isinstance(kind, type):
        return kind.__name__
    return str(kind or '').rpartition('.')[2]


def find_type(registry: Registry, kind: Any, scope: str | None) -> Any:
    """Returns the class of a type in a config; None if it is not found."""
    if isinstance(kind, type):
        return kind
    if not isinstance(kind, str):
        return None
    try:
        with registry.switch_scope_and_registry(scope) as inside:
            found = inside.get(kind)
    except Exception:  # the package is missing or broken
        return None
    return found if isinstance(found, type) else None


def default_of(kind: Any, name: str, default: Any = None) -> Any:
    """Returns the default of an argument of a class."""
    for one in getattr(kind, '__mro__', ()):
        if '__init__' not in vars(one):
            continue
        try:
            found = signature(one.__init__).parameters.get(name)
        except (TypeError, ValueError):
            return default
        if found is not None:
            given = found.default
            return default if given is Parameter.empty else given
    return default


def _kind(found: Any) -> str | None:
    reader = getattr(found, 'load_data_list', None)
    kind = _READERS.get(getattr(reader, '__module__', ''))
    if kind == 'coco':
        parser = getattr(found.parse_data_info, '__module__', '')
        if _READERS.get(parser) != 'coco':
            return None
    if kind == 'folders':
        # Many data sets define their files in their constructor.
        maker = getattr(found.__init__, '__module__', '')
        if maker not in _MAKERS_OF_FOLDERS:
            return None
    return kind


def parts_of(cfg: Config, split: str) -> list[Part]:
    """Returns the data sets of a split, without their wrappers."""
    scope = cfg.get('default_scope')
    parts = []
    for place, settings in datasets_of(cfg, split):
        if 'dataset' in settings or 'datasets' in settings:
            continue
        scoped = settings.get('_scope_') or scope
        found = find_type(DATASETS, settings.get('type'), scoped)
        parts.append(Part(split, place, settings, found, _kind(found)))
    return parts


def kinds_of(metric: Mapping[str, Any], key: str, default: str) -> list[str]:
    """Returns the kinds of results that a setting of a metric asks for."""
    kinds = metric.get(key, default)
    return [kinds] if isinstance(kinds, str) else list(kinds)


def metrics_of(cfg: Config, split: str) -> list[Mapping[str, Any]]:
    """Returns the metrics of a split that are written as settings."""
    return [
        metric
        for metric in evaluators_of(cfg, split)
        if isinstance(metric, Mapping)
    ]
