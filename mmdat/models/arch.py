# Copyright (c) mmdat contributors. Apache-2.0 licence.
"""Architectures: the zoo, and how a name or a dict becomes four stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .attention import KINDS
from .attention.deformable import POSITION_BIASES
from .rules import check_flags, is_number, is_whole, require

NUM_STAGES = 4


@dataclass(frozen=True)
class StageSettings:
    """Everything that may differ from stage to stage.

    Attributes:
        dim: Channels.
        depth: Blocks.
        num_heads: Attention heads.
        attentions: One letter per block, see :data:`KINDS`.
        map_size: (H, W) of the stage's map at the training resolution.
        window_size: Side of the windows of L and S and of X's convolution.
        neighborhood_size: Side of the neighbourhoods of N.
        sr_ratio: Side of the patches that make one key of P.
        offset_groups: Groups of heads of D that share their points.
        offset_kernel: Side of the convolution that predicts the offsets of D.
        offset_stride: Queries per key of D along each axis.
        offset_range: Largest offset of D in cells of the key grid, -1: none.
        use_offsets: Whether D moves its points.
        position_bias: Kind of D's position bias.
        layer_scale_init_value: Start of the layer scales, 0 for none.
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
        stages: The four stages.
    """

    conv_embed: bool
    conv_mlp: bool
    local_perception: bool
    mlp_ratio: float
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
)

_T = dict(embed_dims=[96, 192, 384, 768], num_heads=[3, 6, 12, 24])
_B = dict(embed_dims=[128, 256, 512, 1024], num_heads=[4, 8, 16, 32])
_T_PP = dict(embed_dims=[64, 128, 256, 512], num_heads=[2, 4, 8, 16])
_LARGE = dict(img_size=384, window_size=12)

ARCH_ZOO: dict[str, dict[str, Any]] = {
    'dat_t': dict(family='dat', depths=[2, 2, 6, 2], **_T),
    'dat_s': dict(family='dat', depths=[2, 2, 18, 2], **_T),
    'dat_b': dict(family='dat', depths=[2, 2, 18, 2], **_B),
    'dat_b_384': dict(family='dat', depths=[2, 2, 18, 2], **_B, **_LARGE),
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


def resolve_arch(
    arch: str | Mapping[str, Any], overrides: Mapping[str, Any]
) -> Architecture:
    """Turns an architecture and the user's overrides into four stages.

    Args:
        arch: A name of :data:`ARCH_ZOO`, or a dict with at least
            ``embed_dims``, ``depths`` and ``num_heads``, four numbers each.
            All else comes from its ``family``, ``'dat'`` or ``'dat_pp'`` (the
            default).
        overrides: Settings that replace the architecture's; None is none.

    Raises:
        ValueError: A name, key, length or value that breaks a rule.
    """
    settings = _named_settings(arch)
    settings.update((k, v) for k, v in overrides.items() if v is not None)
    depths = settings['depths'] = _per_stage('depths', settings['depths'])
    heads = settings['num_heads'] = _per_stage(
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
        f.name: _per_stage(f.name, settings[f.name])
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
        for i, dim in enumerate(
            _per_stage('embed_dims', settings['embed_dims'])
        )
    )
    for number, stage in enumerate(stages):
        _check_stage(number, stage)
    require(
        not settings['conv_embed'] or stages[0].dim % 2 == 0,
        'embed_dims[0] must be even for a convolutional patch embedding',
        stages[0].dim,
    )
    ratio = settings['mlp_ratio']
    require(
        is_number(ratio)
        and all(int(stage.dim * ratio) >= 1 for stage in stages),
        'mlp_ratio must leave each MLP a channel, so be positive',
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
        require(
            arch.lower() in ARCH_ZOO,
            f'arch must be a dict or one of {", ".join(ARCH_ZOO)}',
            arch,
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


def _per_stage(name: str, value: Any) -> list[Any]:
    """One value for each stage; a single value serves all four."""
    if isinstance(value, list | tuple):
        require(
            len(value) == NUM_STAGES,
            f'{name} must be one value or a list of {NUM_STAGES}',
            value,
        )
        return list(value)
    return [value] * NUM_STAGES


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
        and set(stage.attentions) <= set(KINDS),
        f'attentions {where}must hold one of the letters {"".join(KINDS)} '
        f'for each of its {stage.depth} blocks',
        stage.attentions,
    )
    # Types and signs also where the stage has no use for a setting.
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
    if 'E' in used:
        require(
            stage.dim % (4 * stage.num_heads) == 0,
            f'embed_dims {where}must be a multiple of 4 num_heads for E',
            f'{stage.dim} for {stage.num_heads} heads',
        )
    if 'Q' in used:
        require(
            stage.dim % (2 * stage.num_heads) == 0,
            f'embed_dims {where}must be a multiple of 2 num_heads for Q',
            f'{stage.dim} for {stage.num_heads} heads',
        )
    if 'D' in used:
        require(
            stage.num_heads % stage.offset_groups == 0,
            f'num_heads {where}must be a multiple of offset_groups',
            f'{stage.num_heads} heads for {stage.offset_groups} groups',
        )
