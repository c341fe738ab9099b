# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Architectures: the zoo, and how a name or a dict becomes four stages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from ..utils.errors import SettingError

NUM_STAGES = 4
#: Letters of attentions, see ``mmdat.models.block.KINDS``.
LETTERS = 'LSNDPXEFQ'
POSITION_BIASES = (
    'table',
    'fixed',
    'depthwise_conv',
    'log_continuous',
    'none',
)


@dataclass(frozen=True)
class StageSettings:
    """Everything that may differ from stage to stage.

    [`DAT`][mmdat.models.DAT] has an argument of the same name for most of them
    and explains it. The others are:

    Attributes:
        dim: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        map_size: (H, W) of the stage's map at the training resolution.
        convention: Coordinates of D.
    """

    dim: int
    depth: int
    num_heads: int
    attentions: str
    map_size: tuple[int, int]
    window_size: int
    neighborhood_size: int
    sr_ratio: int
    offset_groups: int
    offset_kernel: int
    offset_stride: int
    offset_range: float
    use_offsets: bool
    position_bias: str
    layer_scale_init_value: float
    convention: str


@dataclass(frozen=True)
class Architecture:
    """A resolved architecture.

    Attributes:
        conv_embed: Overlapping 3x3 convolutions as patch embedding and
            down-projections, instead of patches.
        conv_mlp: Depthwise convolution in the MLPs.
        local_perception: Residual depthwise 3x3 at the head of each block.
        mlp_ratio: Hidden channels of an MLP over its channels.
        stem_channels: Channels of the patch embedding. If they differ from
            those of stage 0, a linear layer projects them.
        stages: The four stages.
    """

    conv_embed: bool
    conv_mlp: bool
    local_perception: bool
    mlp_ratio: float
    stem_channels: int
    stages: tuple[StageSettings, ...]


def _repeat(pattern: str, depth: int) -> str:
    return (pattern * depth)[:depth]


def _dat_attentions(depths: Sequence[int]) -> list[str]:
    return [_repeat(p, d) for p, d in zip(('LS', 'LS', 'LD', 'LD'), depths)]


def _dat_pp_attentions(depths: Sequence[int]) -> list[str]:
    return [_repeat(p, d) for p, d in zip(('ND', 'ND', 'ND', 'D'), depths)]


# What the two papers fix, as functions of depths and heads where it depends.
FAMILIES: dict[str, dict[str, Any]] = {
    'dat': dict(
        conv_embed=False,
        conv_mlp=False,
        local_perception=False,
        attentions=_dat_attentions,
        offset_groups=lambda heads: [max(h // 4, 1) for h in heads],
        offset_stride=[8, 4, 1, 1],
        offset_range=2,
    ),
    'dat_pp': dict(
        conv_embed=True,
        conv_mlp=True,
        local_perception=True,
        attentions=_dat_pp_attentions,
        offset_groups=lambda heads: [max(h // 2, 1) for h in heads],
        offset_stride=[8, 4, 2, 1],
        offset_range=-1,
    ),
}
COMMON: dict[str, Any] = dict(
    img_size=224,
    mlp_ratio=4,
    window_size=7,
    neighborhood_size=7,
    sr_ratio=[8, 4, 2, 1],
    offset_kernel=[9, 7, 5, 3],
    use_offsets=True,
    position_bias='table',
    layer_scale_init_value=0.0,
    stem_channels=None,  # those of stage 1
)

_T = dict(embed_dims=[96, 192, 384, 768], num_heads=[3, 6, 12, 24])
_B = dict(embed_dims=[128, 256, 512, 1024], num_heads=[4, 8, 16, 32])
_T_PP = dict(embed_dims=[64, 128, 256, 512], num_heads=[2, 4, 8, 16])
_PLAIN = dict(conv_embed=False, conv_mlp=False, local_perception=False)
_LARGE = dict(img_size=384, window_size=12)

ARCH_ZOO: dict[str, dict[str, Any]] = {
    'dat_t': dict(family='dat', depths=[2, 2, 6, 2], **_T),
    'dat_s': dict(family='dat', depths=[2, 2, 18, 2], **_T),
    'dat_b': dict(family='dat', depths=[2, 2, 18, 2], **_B),
    'dat_b_384': dict(family='dat', depths=[2, 2, 18, 2], **_B, **_LARGE),
    # DAT+ is DAT++ without its convolutions, see _PLAIN.
    'dat_p_t': dict(family='dat_pp', depths=[2, 4, 18, 2], **_T_PP, **_PLAIN),
    'dat_pp_t': dict(family='dat_pp', depths=[2, 4, 18, 2], **_T_PP),
    'dat_pp_s': dict(
        family='dat_pp',
        depths=[2, 4, 18, 2],
        offset_groups=[1, 2, 3, 6],
        **_T,
    ),
    'dat_pp_b': dict(family='dat_pp', depths=[2, 4, 18, 2], **_B),
    'dat_pp_b_384': dict(
        family='dat_pp', depths=[2, 4, 18, 2], img_size=384, **_B
    ),
}

_REQUIRED = ('embed_dims', 'depths', 'num_heads')
_KEYS = {'family', *_REQUIRED, *COMMON, *FAMILIES['dat']}
#: Arguments of DAT that override what an architecture says.
OVERRIDES = (
    'img_size',
    'mlp_ratio',
    *(f.name for f in fields(StageSettings) if f.name in _KEYS - {*_REQUIRED}),
)


def resolve_arch(
    arch: str | Mapping[str, Any], overrides: Mapping[str, Any]
) -> Architecture:
    """Turns an architecture and the user's overrides into four stages.

    Args:
        arch: A name of [`ARCH_ZOO`][], or a dict with at least
            ``embed_dims``, ``depths`` and ``num_heads``, four numbers each;
            one number of ``embed_dims`` is doubled from stage to stage.
            All other settings come from its ``family``, ``'dat'`` or
            ``'dat_pp'`` (the default).
        overrides: Settings that replace the architecture's, unless None.

    Raises:
        ValueError: A name, key, length or value that breaks a rule.
    """
    settings = _named_settings(arch)
    settings.update((k, v) for k, v in overrides.items() if v is not None)
    depths = settings['depths'] = per_stage('depths', settings['depths'])
    heads = settings['num_heads'] = per_stage(
        'num_heads', settings['num_heads']
    )
    require(
        all(is_whole(n) for n in (*depths, *heads)),
        'depths and num_heads must be positive whole numbers',
        f'{depths} and {heads}',
    )
    family = FAMILIES[settings['family']]
    for name, given in (('attentions', depths), ('offset_groups', heads)):
        if settings[name] is family[name]:
            settings[name] = family[name](given)

    sizes = _map_sizes(settings['img_size'])
    attentions = settings['attentions']
    require(
        isinstance(attentions, list | tuple)
        and len(attentions) == NUM_STAGES
        and all(
            isinstance(letters, str | list | tuple)
            and all(isinstance(letter, str) for letter in letters)
            for letters in attentions
        ),
        "attentions must be four strings such as 'LD', one letter per block",
        attentions,
    )
    settings['attentions'] = [''.join(letters) for letters in attentions]
    columns = {
        f.name: per_stage(f.name, settings[f.name])
        for f in fields(StageSettings)
        if f.name in settings
    }
    stages = tuple(
        StageSettings(
            dim=dim,
            depth=depths[i],
            map_size=sizes[i],
            convention=settings['family'],
            **{name: column[i] for name, column in columns.items()},
        )
        for i, dim in enumerate(_widths(settings['embed_dims']))
    )
    for number, stage in enumerate(stages):
        _check_stage(number, stage)
    if settings['stem_channels'] is None:
        settings['stem_channels'] = stages[0].dim
    require(
        is_whole(settings['stem_channels']),
        'stem_channels must be a whole number of at least 1',
        settings['stem_channels'],
    )
    require(
        not settings['conv_embed'] or settings['stem_channels'] % 2 == 0,
        'embed_dims[0] or stem_channels must be even for a convolutional '
        'patch embedding',
        settings['stem_channels'],
    )
    ratio = settings['mlp_ratio']
    require(
        is_number(ratio)
        and all(int(stage.dim * ratio) >= 1 for stage in stages),
        'mlp_ratio must give each MLP at least one channel',
        ratio,
    )
    check_flags(
        **{
            name: settings[name]
            for name in ('conv_embed', 'conv_mlp', 'local_perception')
        }
    )
    return Architecture(
        stages=stages,
        **{f.name: settings[f.name] for f in fields(Architecture)[:-1]},
    )


def _named_settings(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an architecture, defaults filled in."""
    if isinstance(arch, str):
        if arch.lower() not in ARCH_ZOO:
            close = get_close_matches(arch.lower(), ARCH_ZOO, 1)
            nearest = f'; a similar name is {close[0]}' if close else ''
            raise SettingError(
                f'arch must be a dict or one of {", ".join(ARCH_ZOO)}; got '
                f'{arch!r}{nearest}.'
            )
        arch = ARCH_ZOO[arch.lower()]
    require(isinstance(arch, Mapping), 'arch must be a name or a dict', arch)
    missing = [key for key in _REQUIRED if key not in arch]
    require(not missing, f'an arch dict needs {", ".join(_REQUIRED)}', arch)
    unknown = sorted(str(key) for key in set(arch) - _KEYS)
    require(
        not unknown,
        f'an arch dict may hold {", ".join(sorted(_KEYS))}',
        ', '.join(unknown),
    )
    family = arch.get('family', 'dat_pp')
    require(
        isinstance(family, str) and family in FAMILIES,
        f"an arch dict's family must be one of {', '.join(FAMILIES)}",
        family,
    )
    return {**COMMON, **FAMILIES[family], **arch, 'family': family}


def per_stage(name: str, value: Any) -> list[Any]:
    """One value for each stage; a single value serves all four."""
    if isinstance(value, list | tuple):
        require(
            len(value) == NUM_STAGES,
            f'{name} must be one value or a list of {NUM_STAGES}',
            value,
        )
        return list(value)
    return [value] * NUM_STAGES


def _widths(value: Any) -> list[Any]:
    """Channels of the stages; one number is doubled from stage to stage."""
    if is_whole(value):
        return [value * 2**i for i in range(NUM_STAGES)]
    return per_stage('embed_dims', value)


def _map_sizes(img_size: int | Sequence[int]) -> list[tuple[int, int]]:
    """Sides of the four maps for an image of this size."""
    pair = isinstance(img_size, list | tuple)
    sides = tuple(img_size) if pair else (img_size,) * 2
    require(
        len(sides) == 2 and all(is_whole(n) for n in sides),
        'img_size must be a positive whole number or a pair (H, W) of them',
        img_size,
    )
    return [
        (-(-sides[0] // stride), -(-sides[1] // stride))
        for stride in (4, 8, 16, 32)
    ]


def _check_stage(number: int, stage: StageSettings) -> None:
    """Raises ValueError if the settings of a stage contradict each other."""
    where = f'of stage {number} '

    def whole(name: str, least: int = 1, odd: bool = False) -> None:
        value = getattr(stage, name)
        require(
            is_whole(value, least) and (value % 2 == 1 or not odd),
            f'{name} {where}must be {"an odd" if odd else "a whole"} number '
            f'of at least {least}',
            value,
        )

    require(
        is_whole(stage.dim),
        f'embed_dims {where}must be a whole number of at least 1',
        stage.dim,
    )
    require(
        len(stage.attentions) == stage.depth
        and set(stage.attentions) <= set(LETTERS),
        f'attentions {where}must hold one of the letters {LETTERS} '
        f'for each of its {stage.depth} blocks',
        stage.attentions,
    )
    # Types and signs are checked even if the stage does not use the setting.
    used = set(stage.attentions)
    whole('window_size', 2 if 'S' in used else 1, odd='X' in used)
    whole('neighborhood_size', odd='N' in used)
    for name in ('sr_ratio', 'offset_groups', 'offset_stride'):
        whole(name)
    moves = 'D' in used and stage.offset_kernel != stage.offset_stride
    whole('offset_kernel', odd=moves)
    require(
        stage.dim % stage.num_heads == 0,
        f'embed_dims {where}must be a multiple of num_heads',
        f'{stage.dim} for {stage.num_heads} heads',
    )
    value = stage.layer_scale_init_value
    require(
        is_number(value) and value >= 0,
        f'layer_scale_init_value {where}must be a number of at least 0',
        value,
    )
    value = stage.offset_range
    require(
        is_number(value) and (value >= 0 or value == -1),
        f'offset_range {where}must be a number of at least 0, or -1 for no '
        f'limit',
        value,
    )
    check_flags(**{f'use_offsets {where}'.rstrip(): stage.use_offsets})
    require(
        stage.position_bias in POSITION_BIASES,
        f'position_bias {where}must be one of {", ".join(POSITION_BIASES)}',
        stage.position_bias,
    )
    for letter, factor in (('E', 4), ('Q', 2)):
        require(
            letter not in used or stage.dim % (factor * stage.num_heads) == 0,
            f'embed_dims {where}must be a multiple of {factor} num_heads for '
            f'{letter}',
            f'{stage.dim} for {stage.num_heads} heads',
        )
    if 'D' in used:
        require(
            stage.num_heads % stage.offset_groups == 0,
            f'num_heads {where}must be a multiple of offset_groups',
            f'{stage.num_heads} heads for {stage.offset_groups} groups',
        )


def require(condition: bool, rule: str, value: Any) -> None:
    """Raises SettingError with rule and value unless the condition holds."""
    if not condition:
        raise SettingError(f'{rule}; got {value!r}.')


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether it is an integer of at least `least`, and not a bool."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= least
    )


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and not a bool."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def check_flags(**flags: Any) -> None:
    """Raises ValueError unless each is True or False."""
    for name, value in flags.items():
        require(
            isinstance(value, bool), f'{name} must be True or False', value
        )


def check_rates(**rates: Any) -> None:
    """Raises ValueError unless each is a number from 0 to 1."""
    for name, value in rates.items():
        require(
            is_number(value) and 0 <= value <= 1,
            f'{name} must lie in [0, 1]',
            value,
        )
