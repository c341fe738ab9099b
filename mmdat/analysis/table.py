# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Writes tables that compare our counts with the authors'."""

from typing import NamedTuple

from mmengine.config import Config

from .breakdown import break_down
from .counting import count, total
from .forward import build_model, forward_whole, usual_shape
from .published import SOURCES, Published

HEAD = """\
| backbone | parameters, M | reported | FLOPs, G | without D's products | \
reported | difference | without |
|---|--:|--:|--:|--:|--:|--:|--:|
"""


class Cost(NamedTuple):
    """Cost of a model.

    Attributes:
        parameters: Number of learnable values.
        flops: Multiply-adds.
        products: Multiply-adds of ``q k^T`` and ``weights v`` in deformable
            attention, which grow with the square of the map size.
    """

    parameters: int
    flops: int
    products: int


def measure(cfg: Config) -> Cost:
    """Counts the model of a config at the usual size for its task."""
    model = build_model(cfg)
    shape = (1, 3, *usual_shape(cfg, model))
    counts = count(model, shape, forward_whole)
    products = sum(
        row.multiply_adds
        for row in break_down(model, counts)
        if row.kind == 'deformable attention'
        and row.term in ('q k^T', 'weights v')
    )
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, total(counts), products)


def line(row: Published, cost: Cost) -> str:
    """Returns a row of a Markdown table."""
    marks = [f' {m}' if m in SOURCES else '' for m in row.sources] or ['', '']
    rest = cost.flops - cost.products
    cells = [
        f'[{row.model}](../configs/{row.config}.py)',
        f'{cost.parameters / 1e6:.1f}',
        '' if row.parameters is None else f'{row.parameters}{marks[0]}',
        _three_digits(cost.flops / 1e9),
        _three_digits(rest / 1e9),
    ]
    if row.flops is None:
        cells += ['', '', '']
    else:
        cells.append(f'{row.flops}{marks[1]}')
        for part in (cost.flops, rest):
            cells.append(f'{100 * (part / row.flops / 1e9 - 1):+.1f}%')
    return f'| {" | ".join(cells)} |'


def _three_digits(number: float) -> str:
    return f'{number:.2f}' if number < 100 else f'{number:.0f}'
