# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""The released architectures (DAT, tab. 1; DAT++, arXiv 2309.01430)."""

from typing import NamedTuple


class Variant(NamedTuple):
    """One architecture.

    Attributes:
        family: 'dat' (DAT) or 'dat_pp' (DAT++).
        stages: The attention of every block, one string per stage: L local
            window, S shifted window, N neighbourhood, D deformable, P
            pyramid, X convolution, E slide, Q learnt queries, F full.
        heads: Per stage; the heads of a released model are 32 wide.
        groups: Offset groups per stage; None where there is no D.
        strides: Of the deformed keys, per stage.
        range_factor: Of the offsets; negative for none.
        window: Side of the local windows, and of X's kernel.
        offsets: See `deformable.deformable_attention`.
        bias: Likewise.
        qna_heads: Heads of Q per stage.
        plain: Whether it is without the convolutions of DAT++ in patch
            embedding, down-projections, MLPs and before blocks.
    """

    family: str
    stages: tuple[str, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    strides: tuple[int, ...]
    range_factor: float
    window: int = 7
    offsets: bool = True
    bias: str = 'table'
    qna_heads: tuple[int, ...] = (6, 12, 24, 48)
    plain: bool = False

    @property
    def layers(self) -> str:
        """The family whose layers around the attention it has."""
        return 'dat' if self.plain else self.family


def _dat(third: str, heads, groups, window=7) -> Variant:
    return Variant(
        'dat',
        ('LS', 'LS', third, 'LD'),
        heads,
        (None, None) + groups,
        (1, 1, 1, 1),
        2,
        window,
    )


def _dat_pp(heads, groups) -> Variant:
    return Variant(
        'dat_pp',
        ('ND', 'NDND', 9 * 'ND', 'DD'),
        heads,
        groups,
        (8, 4, 2, 1),
        -1,
    )


VARIANTS = dict(
    dat_t=_dat(3 * 'LD', (3, 6, 12, 24), (3, 6)),
    dat_s=_dat(9 * 'LD', (3, 6, 12, 24), (3, 6)),
    dat_b=_dat(9 * 'LD', (4, 8, 16, 32), (4, 8)),
    dat_b_384=_dat(9 * 'LD', (4, 8, 16, 32), (4, 8), window=12),
    dat_p_t=_dat_pp((2, 4, 8, 16), (1, 2, 4, 8))._replace(plain=True),
    dat_pp_t=_dat_pp((2, 4, 8, 16), (1, 2, 4, 8)),
    dat_pp_s=_dat_pp((3, 6, 12, 24), (1, 2, 3, 6)),
    dat_pp_b=_dat_pp((4, 8, 16, 32), (2, 4, 8, 16)),
    dat_pp_b_384=_dat_pp((4, 8, 16, 32), (2, 4, 8, 16)),
)
