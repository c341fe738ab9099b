# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Which runs each study consists of."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
REPO = CONFIGS.parents[2]

BIASES = ('none', 'fixed', 'depthwise_conv', 'log_continuous', 'table')
RANGES = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16)
#: Config of DAT, and of the baselines in its recipe, by scale.
SCALES = {
    'small': CONFIGS / 'small.py',
    'in1k': REPO / 'configs' / 'classifier_dat_t_in1k.py',
    'coco': REPO / 'configs' / 'mask_rcnn_dat_t_coco.py',
}


@dataclass(frozen=True)
class Variant:
    """One model of a study.

    Attributes:
        name: Folder of its runs. The model that all studies share has one
            name, so that it is trained once.
        label: What tables and plots call it.
        config: Its config, None for that of the scale.
        options: Settings of the backbone that differ from the config's.
    """

    name: str
    label: str
    config: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


DEFAULT = 'dat'


def _geometry() -> list[Variant]:
    """Offsets off and on, each with every kind of position bias."""
    variants = []
    for offsets in (False, True):
        for bias in BIASES:
            word = 'on' if offsets else 'off'
            same = offsets and bias == 'table'
            variants.append(
                Variant(
                    DEFAULT if same else f'offsets_{word}-bias_{bias}',
                    f'offsets {word}, bias {bias}',
                    options={}
                    if same
                    else dict(use_offsets=offsets, position_bias=bias),
                )
            )
    return variants


def _blocks(letter: str, depth: int) -> str:
    """L and `letter` in turn; a single block is D if that is the letter."""
    if depth == 1:
        return 'D' if letter == 'D' else 'L'
    return f'L{letter}' * (depth // 2)


def _stages(depths: list[int]) -> list[Variant]:
    """Deformable attention in the last 0 to 4 stages, windows elsewhere.

    A stage of one block gets D or L whole, others alternate as in the paper.
    """
    variants = []
    for first in range(4, -1, -1):
        attentions = [
            _blocks('D' if i >= first else 'S', depth)
            for i, depth in enumerate(depths)
        ]
        numbers = ' '.join(str(i + 1) for i in range(first, 4))
        variants.append(
            Variant(
                DEFAULT if first == 2 else f'stages_{4 - first}',
                f'stages {numbers}' if numbers else 'none (windows only)',
                options={} if first == 2 else dict(attentions=attentions),
            )
        )
    return variants


def _range() -> list[Variant]:
    """The offset range s, in cells of the key grid."""
    return [
        Variant(
            DEFAULT if s == 2 else f'range_{s}',
            f's = {s}',
            options={} if s == 2 else dict(offset_range=s),
        )
        for s in RANGES
    ]


def _baselines(scale: str) -> list[Variant]:
    """DAT beside Swin and PVT in the same recipe."""
    return [
        Variant(DEFAULT, 'DAT'),
        Variant('swin', 'Swin', CONFIGS / f'{scale}_swin.py'),
        Variant('pvt', 'PVT', CONFIGS / f'{scale}_pvt.py'),
    ]


def _attention() -> list[Variant]:
    """DAT+ with neighbourhoods, full or deformable attention between.

    The authors' ``dat_p``, ``dat_new_abl_fullatt`` and
    ``dat_new_abl_fulldmha``.
    """
    config = CONFIGS / 'in1k_dat_plus.py'

    def blocks(letter: str) -> dict[str, Any]:
        pair = f'{letter}D'
        return dict(attentions=[pair, pair * 2, pair * 9, 'DD'])

    return [
        Variant('dat_p', 'neighbourhood (DAT+)', config),
        Variant('dat_p_full', 'full', config, blocks('F')),
        Variant('dat_p_deformable', 'deformable', config, blocks('D')),
    ]


def _swin_style() -> list[Variant]:
    """The authors' ``dat_t_ss_*``: what alternates with deformable attention.

    Names are theirs: the strides of the keys (8421 if not said), ``s234`` for
    deformable attention from stage 2 on, ``g`` for the offset groups (1248 if
    not said).
    """
    config = CONFIGS / 'in1k_swin_style.py'
    windows = dict(attentions=['LS', 'LD', 'LDLDLD', 'DD'])
    later = dict(attentions=['NN', 'ND', 'NDNDND', 'DD'])
    groups = dict(offset_groups=[1, 2, 3, 6])
    options = {
        'ld': windows,
        'nd': {},
        'nd_4211': dict(offset_stride=[4, 2, 1, 1]),
        'nd_4421': dict(offset_stride=[4, 4, 2, 1]),
        'nd_s234': later,
        'nd_g1236': groups,
        'nd_s234_g236': {**later, **groups},
    }
    return [
        Variant(f'ss_{name}', name, config, settings)
        for name, settings in options.items()
    ]


STUDIES = (
    'geometry',
    'stages',
    'range',
    'baselines',
    'attention',
    'swin_style',
)


def variants(study: str, scale: str) -> list[Variant]:
    """The models of a study; none where it is not for the scale.

    Args:
        study: One of ``STUDIES``.
        scale: One of ``SCALES``.
    """
    if study == 'geometry':
        return _geometry()
    if study == 'stages':
        return _stages([1, 1, 2, 2] if scale == 'small' else [2, 2, 6, 2])
    if study == 'range':
        return _range()
    if study == 'baselines':
        return _baselines(scale)
    if scale != 'in1k':  # the authors have these for classification only
        return []
    return _attention() if study == 'attention' else _swin_style()
