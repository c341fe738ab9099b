# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Assigns multiply-adds and parameters to the parts of a model."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..models import DAT
from ..models.attention.deformable import DeformableAttention
from ..models.attention.neighborhood import NeighborhoodAttention
from ..models.attention.window import WindowAttention
from .counting import ModuleCount

EMBEDDING = 'patch embedding, down-projections'
_ATTENTION = {
    WindowAttention: 'window attention',
    NeighborhoodAttention: 'neighbourhood attention',
    DeformableAttention: 'deformable attention',
}
_ORDER = (
    EMBEDDING,
    'local perception',
    'window attention',
    'neighbourhood attention',
    'deformable attention',
)


@dataclass
class Row:
    """A line of the table.

    Attributes:
        part: Child of the model, such as ``'backbone'``.
        kind: Kind of layers in the part, such as ``'MLPs'``; may be empty.
        term: Term of the kind, such as ``'q k^T'``; may be empty.
        multiply_adds: Number of multiply-adds.
        parameters: Number of learnable values.
    """

    part: str
    kind: str
    term: str
    multiply_adds: int = 0
    parameters: int = 0


def break_down(model: nn.Module, counts: dict[str, ModuleCount]) -> list[Row]:
    """Divides the multiply-adds and parameters of a model into rows.

    Args:
        model: The model.
        counts: Result of ``mmdat.analysis.counting.count`` for the model.

    Returns:
        Rows in the order of the forward pass. Their sum is the whole model.
    """
    modules = dict(model.named_modules())
    rows: dict[tuple[str, str, str], Row] = {}

    def row(place: tuple[str, str], term: str = '') -> Row:
        return rows.setdefault((*place, term), Row(*place, term))

    for name, parameter in model.named_parameters():
        owner = name.rpartition('.')[0]
        place = _place(modules, owner)
        term = _layer_term(modules, owner)
        row(place, term).parameters += parameter.numel()
    for name, number in counts.items():
        place = _place(modules, name)
        row(place, _layer_term(modules, name)).multiply_adds += number.layers
        for term, part in _products(modules.get(name), number):
            row(place, term).multiply_adds += part
    return sorted(
        (r for r in rows.values() if r.multiply_adds or r.parameters),
        key=lambda r: _position(model, r),
    )


def add_up(rows: list[Row], by: str) -> dict[str, int]:
    """Returns the multiply-adds of each ``part``, ``kind`` or ``term``."""
    sums: dict[str, int] = defaultdict(int)
    for row in rows:
        sums[getattr(row, by)] += row.multiply_adds
    return dict(sums)


def _position(model: nn.Module, row: Row) -> tuple[int, int]:
    children = [name for name, _ in model.named_children()]
    child = row.part.split('.')[0]
    at = children.index(child) if child in children else len(children)
    return at, _ORDER.index(row.kind) if row.kind in _ORDER else len(_ORDER)


def _around(modules: dict[str, nn.Module], name: str) -> Iterator[str]:
    """Yields the names of a module and of its parents, innermost first."""
    while name:
        yield name
        name = name.rpartition('.')[0]
    yield ''


def _place(modules: dict[str, nn.Module], name: str) -> tuple[str, str]:
    """Returns part and kind of a module."""
    path = name.split('.')
    part = '.'.join(path[: 2 if path[0] == 'roi_head' else 1])
    names = list(_around(modules, name))
    home = [n for n in names if isinstance(modules.get(n), DAT)]
    if not home:
        return part, ''
    for inside in names:
        for kind, label in _ATTENTION.items():
            if isinstance(modules.get(inside), kind):
                return home[0], label
    inner = name.removeprefix(home[0]).removeprefix('.').split('.')
    if inner[0] in ('patch_embed', 'downsamples'):
        return home[0], EMBEDDING
    for entry, label in (
        ('local_perception', 'local perception'),
        ('mlp', 'MLPs'),
        ('attn', 'other attention'),
        ('conv', 'other attention'),
    ):
        if entry in inner:
            return home[0], label
    return home[0], 'norms'


def _layer_term(modules: dict[str, nn.Module], name: str) -> str:
    """Returns the term of a layer of an attention; empty for others."""
    for inside in _around(modules, name):
        if isinstance(modules.get(inside), tuple(_ATTENTION)):
            part = name.removeprefix(inside).removeprefix('.').split('.')[0]
            # What an attention computes outside its layers is the bias.
            return {
                'conv_offset': 'offsets',
                'rpe_table': 'position bias',
                '': 'position bias',
            }.get(part, 'projections')
    return ''


def _products(
    module: nn.Module | None, number: ModuleCount
) -> Iterator[tuple[str, int]]:
    """Yields terms of matrix products and sampling, with their numbers."""
    if isinstance(module, tuple(_ATTENTION)):
        # Keys and values have as many channels, so each product is a half.
        yield 'q k^T', number.products // 2
        yield 'weights v', number.products - number.products // 2
    else:
        yield '', number.products
    for channels, part in number.sampling.items():
        if isinstance(module, DeformableAttention):
            heads = module.num_heads // module.offset_groups
            biases = channels == heads
            yield 'position bias' if biases else 'sampling of x', part
        else:
            yield '', part
