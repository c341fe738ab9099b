# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Which part of a model multiply-adds and parameters belong to."""

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
        kind: What of it, such as ``'MLPs'``; may be empty.
        term: What of that, such as ``'q k^T'``; may be empty.
        multiply_adds: Their number.
        parameters: Learnable numbers.
    """

    part: str
    kind: str
    term: str
    multiply_adds: int = 0
    parameters: int = 0


def break_down(model: nn.Module, counts: dict[str, ModuleCount]) -> list[Row]:
    """Sorts the counts of a model, and its parameters, into rows.

    Args:
        model: The model.
        counts: What ``mmdat.analysis.counting.count`` says of it.

    Returns:
        Rows in the order of the forward pass; they add up to the model.
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
    """Multiply-adds for each ``part``, ``kind`` or ``term``."""
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
    """The names of a module and those it is in, the innermost first."""
    while name:
        yield name
        name = name.rpartition('.')[0]
    yield ''


def _place(modules: dict[str, nn.Module], name: str) -> tuple[str, str]:
    """Part and kind of a module."""
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
    """Term of the layers of an attention, otherwise empty."""
    for inside in _around(modules, name):
        if isinstance(modules.get(inside), tuple(_ATTENTION)):
            part = name.removeprefix(inside).removeprefix('.').split('.')[0]
            # Outside its layers an attention does nothing but biases.
            return {
                'conv_offset': 'offsets',
                'rpe_table': 'position bias',
                '': 'position bias',
            }.get(part, 'projections')
    return ''


def _products(
    module: nn.Module | None, number: ModuleCount
) -> Iterator[tuple[str, int]]:
    """Terms of matrix products and sampling."""
    if isinstance(module, tuple(_ATTENTION)):
        # Keys and values have equally many channels, so each is a half.
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
